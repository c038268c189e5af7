"""The space in which methods optimise: what the first weight sees, after the preprocessing layer.

The field's recipes (learning rates of images, N(0,1) noise, zero fill of augmentation) hold for
normalised or whitened pixels, while sets are stored in pixel space. A method therefore splits a
network, works on z = layer(pixels), and maps the result back at the end.

Shapes: B batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.preprocessing import ZCA, Normalise


def split_network(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The preprocessing layer and the rest of a network made by `DistillTask.network`.

    Where a plugin's network has no such layer in front, the layer is the identity, and methods work
    in pixel space.
    """
    if (
        isinstance(network, nn.Sequential)
        and len(network) == 2
        and isinstance(network[0], nn.Identity | Normalise | ZCA)
    ):
        return network[0], network[1]
    return nn.Identity(), network


def to_pixels(layer: nn.Module, z_BCHW: Tensor) -> Tensor:
    """The inverse of a preprocessing layer.

    Args:
        layer: what `split_network` returned.
        z_BCHW: images in the network's input space.

    Returns:
        (B,C,H,W) in pixel space, of the same dtype; nothing is clamped.
    """
    if isinstance(layer, Normalise):
        return z_BCHW * layer.std + layer.mean
    if isinstance(layer, ZCA):
        # The matrix is symmetric; float64, since its condition number is in the hundreds.
        flat: Tensor = torch.linalg.solve(layer.matrix.double(), z_BCHW.flatten(1).double().T).T
        return (flat + layer.mean.double()).to(z_BCHW.dtype).view_as(z_BCHW)
    if isinstance(layer, nn.Identity):
        return z_BCHW
    raise UsageError(f"no inverse is known of the preprocessing layer {type(layer).__name__}")


def starting_images(
    task: DistillTask, ipc: int, layer: nn.Module, init: Literal["noise", "real"]
) -> Tensor:
    """What a method starts from, in the network's input space.

    The draw is seeded for the purpose "init", the same for every method that has the same seeds.

    Args:
        task: the task.
        ipc: images per class.
        layer: the preprocessing layer.
        init: "real" for random training images, "noise" for N(0,1) in the input space.

    Returns:
        (K*ipc,C,H,W), ordered by class, on the task's device.

    Raises:
        UsageError: a class has fewer than `ipc` images to start from.
    """
    source = task.seeds.generator("init")
    if init == "real":
        real: Tensor = layer(task.real_images(ipc, source)[0])
        return real
    shape = (task.num_classes * ipc, *task.images.shape[1:])
    return torch.randn(shape, generator=source).to(task.device)


def features(network: nn.Module, x_BCHW: Tensor) -> Tensor:
    """What the last linear layer of a network is given.

    Args:
        network: any network that ends in an `nn.Linear`, with or without preprocessing in front.
        x_BCHW: its input.

    Returns:
        (B,F), attached to the graph.

    Raises:
        UsageError: the network has no linear layer, or does not use it.
    """
    return features_and_logits(network, x_BCHW)[0]


def features_and_logits(network: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The same features (B,F), and what the network makes of them (B,K), in one pass.

    Raises:
        UsageError: the network has no linear layer, or does not use it.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError("features are the input of the last nn.Linear; this network has none")
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits: Tensor = network(x_BCHW)
    finally:
        handle.remove()
    if not seen:
        raise UsageError("features are the input of the last nn.Linear, which was never called")
    return seen[-1].flatten(1), logits

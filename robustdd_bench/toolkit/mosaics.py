"""Mosaics for methods: what to start from, and taking them apart in the network's input space.

`decode_mosaics` is the one function that takes mosaics apart, for students and for methods.

Shapes: K classes, S stored images per class, f tiles a side, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.protocol.mosaics import check_mosaic, decode_mosaics, join_mosaics
from robustdd_bench.protocol.preprocessing import ZCA
from robustdd_bench.toolkit.inputspace import starting_images, to_pixels

__all__ = ["check_mosaic", "decode_inputs", "decode_mosaics", "starting_mosaics"]


def starting_mosaics(
    task: DistillTask, ipc: int, layer: nn.Module, init: Literal["noise", "real"], mosaic: int
) -> Tensor:
    """What a method that makes mosaics starts from, in the network's input space.

    Each tile of each image is a real image of its class, made smaller (the mean of f x f pixels,
    which for f = 2 is the bilinear interpolation of IDM). The images of one place in the grid are
    drawn without repetition, those of different places apart, as in IDM's code.

    Args:
        task: the task.
        ipc: stored images per class.
        layer: the preprocessing layer.
        init: "real", or "noise" for N(0,1) in the input space.
        mosaic: tiles a side; for 1, what `starting_images` gives.

    Returns:
        (K*S,C,H,W), ordered by class, on the task's device.

    Raises:
        UsageError: a class has fewer than `ipc` images, or `mosaic` does not divide the images.
    """
    check_mosaic(task.images.shape[-2:], mosaic)
    if mosaic == 1 or init == "noise":
        return starting_images(task, ipc, layer, init)
    source = task.seeds.generator("init")
    places = [task.real_images(ipc, source)[0] for _ in range(mosaic**2)]
    whole: Tensor = layer(join_mosaics(F.avg_pool2d(torch.cat(places), mosaic), mosaic))
    return whole


def decode_inputs(layer: nn.Module, z_BCHW: Tensor, mosaic: int) -> Tensor:
    """What the network's first weight sees of some mosaics: layer(decode(pixels)).

    Normalisation and interpolation can be exchanged, so that mosaics are taken apart as they are;
    whitening mixes all pixels, and is undone and done again.

    Args:
        layer: the preprocessing layer.
        z_BCHW: mosaics in the network's input space.
        mosaic: tiles a side, f.

    Returns:
        (f*f*n,C,H,W) in the network's input space, tile after tile, attached to the graph.
    """
    if mosaic > 1 and isinstance(layer, ZCA):
        decoded: Tensor = layer(decode_mosaics(to_pixels(layer, z_BCHW), mosaic))
        return decoded
    return decode_mosaics(z_BCHW, mosaic)

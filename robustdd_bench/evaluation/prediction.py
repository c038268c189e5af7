"""What a student says: forward passes in eval mode, with frozen weights.

Shapes: N examples of a split, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with its parameters frozen; both are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits (N,K) of pixels (N,C,H,W), in eval mode and without gradients."""
    with frozen(model), torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(images, batch_size)])


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label has the largest logit; bool (N,). A row that holds NaN is wrong."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def classified(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Bits: whether the model is right on each image; bool (N,) on the CPU."""
    return right(predict(model, images, batch_size), labels).cpu()


def other_batch_size(count: int, batch_size: int) -> int:
    """A batch size that cuts `count` examples otherwise than `batch_size` does."""
    return min(count, batch_size) // 2 or 2

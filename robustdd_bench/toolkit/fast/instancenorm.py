r"""Instance norm whose gradient is differentiated by a formula instead of a long decomposition.

PyTorch differentiates `nn.GroupNorm` twice through a decomposition of some forty elementwise
passes. For one group a channel, the field's "instance norm", the second derivative is short. Per
image and channel, over the n = H W pixels, with mean m, r = 1/sqrt(variance + epsilon),
z = (x - m) r, weight g and  P(v) = v - mean(v) - z mean(v z):

    y   = g z + b
    d_x = r g P(d),   d_g = sum d z,   d_b = sum d                        for the cotangent d of y

and for cotangents (u, p, q) of (d_x, d_g, d_b), with a = mean(u z), c = mean(d z):

    to d:  r g P(u) + p z + q
    to g:  sum r u P(d) = sum n r (mean(u d) - mean(u) mean(d) - a c)
    to x:  r P((p - r g a) d - r g c u) - r^2 g (mean(u d) - mean(u) mean(d) - a c) z

since the variation of z is r P(dx) and that of r is -r^2 mean(z dx). Forward and first derivative
are PyTorch's own kernels. Third derivatives are refused.

Shapes: B batch, C channels, H height, W width; d, u, x, y are (B,C,H,W), g, b, p, q are (C,), and
m, r, a, c are (B,C).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class _Norm(torch.autograd.Function):
    """(x, weight, bias) -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        B, C, H, W = x.shape
        y, mean, scale = torch.native_group_norm(x, weight, bias, B, C, H * W, C, epsilon)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_weight, d_bias = _Backward.apply(cotangents[0], *ctx.saved_tensors)
        return d_x, d_weight, d_bias, None


class _Backward(torch.autograd.Function):
    """(cotangent of y, x, weight, mean, scale) -> cotangents of x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, d: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        d = d.contiguous()
        B, C, H, W = x.shape
        ctx.save_for_backward(d, x, weight, mean, scale)
        products: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
            d, x, mean, scale, weight, B, C, H * W, C, [True, True, True]
        )
        return products

    @staticmethod
    def backward(ctx: Any, u: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what follows would be a constant to autograd
            raise RuntimeError("InstanceNorm has no third derivative; use nn.GroupNorm")
        d, x, g, m, r = ctx.saved_tensors
        B, C, H, W = x.shape
        n = H * W
        flat = (B, C, n)
        u, d, x = u.reshape(flat), d.view(flat), x.view(flat)
        m, r = m.view(B, C), r.view(B, C)
        u_mean, d_mean = u.mean(2), d.mean(2)
        # Means of products less the product of means: one pass each, no temporary of full size.
        a = r * (_dot(u, x) / n - m * u_mean)
        c = r * (_dot(d, x) / n - m * d_mean)
        common = _dot(u, d) / n - u_mean * d_mean - a * c
        rg = r * g
        # Sums of the form  alpha u + beta x + gamma, z being r x - r m.
        beta = (p - rg * a) * r
        to_d = _sum(q - rg * u_mean - beta * m, (u, rg), (x, beta))
        to_g = (n * r * common).sum(0)
        of_d, of_u = p - rg * a, -rg * c
        of_z = -(of_d * c + of_u * a) * r - r * rg * common
        rest = -r * (of_d * d_mean + of_u * u_mean) - of_z * r * m
        to_x = _sum(rest, (d, r * of_d), (u, r * of_u), (x, r * of_z))
        shape = (B, C, H, W)
        return to_d.view(shape), to_x.view(shape), to_g, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B,C) over the last axis."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products


def _sum(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Constant (B,C) plus the sum of tensors (B,C,n) times factors (B,C)."""
    (first, factor), *others = terms
    total = torch.addcmul(constant.unsqueeze(2), first, factor.unsqueeze(2))
    for term, factor in others:
        total.addcmul_(term, factor.unsqueeze(2))
    return total


class InstanceNorm(nn.Module):
    """`nn.GroupNorm` with one group a channel, as the state dict and the values go."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise each channel of each image, in the precision of the weights."""
        x_BCHW = x_BCHW.to(self.weight.dtype)  # under autocast it may come in bfloat16
        x_BCHW = x_BCHW.contiguous()  # here: what is saved below must be what the graph leads to
        y: Tensor = _Norm.apply(x_BCHW, self.weight, self.bias, self.eps)
        return y


def with_fast_norm(network: nn.Module) -> nn.Module:
    """A copy of a network with every instance norm (affine, one group a channel) made fast."""
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if (
                isinstance(child, nn.GroupNorm)
                and child.num_groups == child.num_channels
                and child.affine
            ):
                setattr(module, name, InstanceNorm(child))
    return copied

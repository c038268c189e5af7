r"""Instance norm, ReLU and average pooling as one operation, and convolutions that go with it.

`compiled(network)` gives a network of the same weights and names, in which every instance norm
(`nn.GroupNorm`, affine, one group a channel), with the ReLU behind it and the 2x2 average pooling
behind that, is one module that compiled kernels compute (`robustdd_bench.toolkit.fast.compile`).
The values are those of the modules it stands for, up to rounding.

Per image and channel, over the n = H W pixels, with mean m, r = 1/sqrt(variance + epsilon),
z = (x - m) r, weight g, bias b, P(v) = v - mean(v) - z mean(v z), and A the pooling (or nothing):

    y   = A relu(g z + b)
    d   = [g z + b > 0] A^T e                                         for the cotangent e of y
    d_x = r g P(d),   d_g = sum d z,   d_b = sum d

and for cotangents (u, p, q) of (d_x, d_g, d_b), with a = mean(u z) and c = mean(d z):

    to e:  A [g z + b > 0] (r g P(u) + p z + q)
    to g:  n r (mean(u d) - mean(u) mean(d) - a c)
    to x:  r P((p - r g a) d - r g c u) - r^2 g (mean(u d) - mean(u) mean(d) - a c) z

ReLU has no second derivative. Third derivatives are refused. Beside its input an operation keeps
m and r alone, and its derivative the pooled cotangent alone: less than half of what torch keeps.

Shapes: B batch, C channels, H height, W width; x, u, d are (B,C,H,W), e and y (B,C,H/2,W/2) where
they are pooled, g, b, p, q are (C,), m and r (B,C).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.protocol.pooling import HalvingPool
from robustdd_bench.toolkit.fast.compile import fits, kernels, plain
from robustdd_bench.toolkit.fast.convolutions import FEW, Convolution, Tape


class _Forward(torch.autograd.Function):
    """(x, weight, bias) -> y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, relu: bool, pooled: bool
    ) -> Tensor:
        B, C, H, W = x.shape
        y = x.new_empty((B, C, H // 2, W // 2) if pooled else x.shape)
        means, scales = x.new_empty(B, C), x.new_empty(B, C)
        tensors = (x, weight, bias, y, means, scales)
        kernels(x.device)("forward", tensors, B * C, C, H, W, epsilon, relu, pooled)
        ctx.save_for_backward(x, weight, bias, means, scales)
        ctx.options = relu, pooled
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a second derivative may follow
            products = _Backward.apply(cotangents[0], *ctx.saved_tensors, *ctx.options)
        else:
            d_x, d_weight, d_bias = _cotangents(cotangents[0], ctx.saved_tensors, ctx.options)
            _, of_weight, of_bias, *_ = ctx.needs_input_grad
            products = (
                d_x,
                d_weight.sum(0) if of_weight else None,
                d_bias.sum(0) if of_bias else None,
            )
        return *products, None, None, None


def _cotangents(
    e: Tensor, saved: Sequence[Tensor], options: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of x, and of weight and bias for each image (B,C)."""
    x, weight, bias, means, scales = saved
    B, C, H, W = x.shape
    d_x, (d_weight, d_bias) = torch.empty_like(x), x.new_empty(2, B, C)
    tensors = (e.contiguous(), x, weight, bias, means, scales, d_x, d_weight, d_bias)
    kernels(x.device)("backward", tensors, B * C, C, H, W, *options)
    return d_x, d_weight, d_bias


class _Backward(torch.autograd.Function):
    """(cotangent of y, x, weight, bias, means, scales) -> cotangents of x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        means: Tensor,
        scales: Tensor,
        relu: bool,
        pooled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        e = e.contiguous()
        ctx.save_for_backward(e, x, weight, bias, means, scales)
        ctx.options = relu, pooled
        d_x, d_weight, d_bias = _cotangents(e, (x, weight, bias, means, scales), ctx.options)
        return d_x, d_weight.sum(0), d_bias.sum(0)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what follows would be a constant to autograd
            raise RuntimeError("a compiled norm has no third derivative; run with --compile off")
        e, x, weight, bias, means, scales = ctx.saved_tensors
        u, p, q = (cotangent.contiguous() for cotangent in cotangents)
        to_e, to_x, to_weight = torch.empty_like(e), torch.empty_like(x), torch.empty_like(means)
        tensors = (u, p, q, e, x, weight, bias, means, scales, to_e, to_x, to_weight)
        B, C, H, W = x.shape
        kernels(x.device)("second", tensors, B * C, C, H, W, *ctx.options)
        return to_e, to_x, to_weight.sum(0), None, None, None, None, None


class NormBlock(nn.Module):
    """An instance norm, with a ReLU and a 2x2 average pooling behind it if wanted.

    Args:
        norm: `nn.GroupNorm`, affine, one group a channel; its parameters are shared.
        relu: whether a ReLU follows.
        pooled: whether then `nn.AvgPool2d(2)` follows.
    """

    def __init__(self, norm: nn.GroupNorm, *, relu: bool, pooled: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.relu, self.pooled = relu, pooled
        self.train(norm.training)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to the same shape, or (B,C,H//2,W//2); in the precision of the weights."""
        x_BCHW = x_BCHW.to(self.weight.dtype)  # under autocast it may come in bfloat16
        if x_BCHW.ndim != 4 or not plain(x_BCHW) or not fits(x_BCHW, self.pooled):
            return self.formula(x_BCHW)
        # Here and not inside: what is saved there must be what the graph leads to.
        inputs = x_BCHW.contiguous(), self.weight.contiguous(), self.bias.contiguous()
        y: Tensor = _Forward.apply(*inputs, self.eps, self.relu, self.pooled)
        return y

    def formula(self, x_BCHW: Tensor) -> Tensor:
        """The same by torch's own operations: the naive form."""
        y = F.group_norm(x_BCHW, len(self.weight), self.weight, self.bias, self.eps)
        y = F.relu(y) if self.relu else y
        return F.avg_pool2d(y, 2) if self.pooled else y

    def extra_repr(self) -> str:
        """The channels and what follows the norm."""
        return f"{len(self.weight)}, eps={self.eps}, relu={self.relu}, pooled={self.pooled}"


def compiled(network: nn.Module, tape: Tape | None = None) -> nn.Module:
    """A network of the same parameters, buffers and names that compiled kernels compute.

    Modules that are subclassed or carry hooks stay as they are.

    Args:
        network: stays as it is.
        tape: if given, all convolutions are exchanged too, for second derivatives, and write on
            it; else those of images alone (see `robustdd_bench.toolkit.fast.convolutions`).
    """
    tensors = (*network.parameters(), *network.buffers())
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    copied = _exchanged(copied, tape)
    for module in list(copied.modules()):
        children = list(module.named_children())
        for place, (name, child) in enumerate(children):
            made = _exchanged(child, tape)
            if made is not child:
                setattr(module, name, made)
            if isinstance(made, NormBlock) and type(module) is nn.Sequential:
                _take_in(module, made, children[place + 1 : place + 3])
    return copied


def _exchanged(module: nn.Module, tape: Tape | None) -> nn.Module:
    """What stands for a module in a compiled network."""
    if (
        _is_plain(module, nn.GroupNorm)
        and module.num_groups == module.num_channels
        and module.affine
    ):
        assert isinstance(module, nn.GroupNorm)
        return NormBlock(module, relu=False, pooled=False)
    if _is_plain(module, nn.Conv2d):
        assert isinstance(module, nn.Conv2d)
        if Convolution.can_be(module) and (tape is not None or module.in_channels <= FEW):
            return Convolution(module, tape)
    return module


def _take_in(
    parent: nn.Sequential, block: NormBlock, following: list[tuple[str, nn.Module]]
) -> None:
    """Let a block do what follows it in its parent, where it can."""
    for name, module in following:
        if not block.relu and _is_plain(module, nn.ReLU):
            block.relu = True
        elif block.relu and _halves(module):
            block.pooled = True
        else:
            return
        setattr(parent, name, nn.Identity())
        if block.pooled:
            return


def _halves(module: nn.Module) -> bool:
    """Whether a module is average pooling of 2x2 pixels."""
    if not _is_plain(module, nn.AvgPool2d) and not _is_plain(module, HalvingPool):
        return False
    return (
        module.kernel_size in (2, (2, 2))
        and module.stride in (2, (2, 2))
        and module.padding in (0, (0, 0))
        and not module.ceil_mode
        and module.divisor_override is None
    )


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly that class, with nothing attached to it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, name, None) for name in hooks)
    )

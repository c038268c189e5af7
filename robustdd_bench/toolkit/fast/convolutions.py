"""Convolutions whose second derivative is a few convolutions, and a tape of their results.

With the input x, the weight w and the cotangent d of the output, torch has d_x = w^T * d and
d_w = x * d in one call. For cotangents (u, v, s) of (d_x, d_w, d_b) this module takes

    to d:  conv(u, w) + conv(x, v) + s, as one convolution of [u, x] with [w, v]
    to x:  v^T * d
    to w:  u * d

of which torch's own form makes more: its `to w` is a convolution with kernels as large as images.

The adjoint recursion (`robustdd_bench.toolkit.trajectories.unroll`) computes a student step twice:
forward, for its gradient, and again, for the products with that gradient. What the second time
needs of the first are outputs of convolutions and their cotangents. A `Tape` keeps those that cost
more than `WORTH` operations a number, and a replay takes them from it: little is computed twice,
and little is kept. A replay leaves out the gradients of weights, since nothing reads their values.

The cotangent of an input of few channels, such as an image, is a matrix product (see `FEW`).

Shapes: B batch, O output channels, C input channels; x (B,C,H,W), w (O,C,h,w).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.toolkit.fast.compile import kernels, plain

FEW = 4
"""Input channels up to which d_x is a matrix product with the weights, added up over the patches.
oneDNN pads channels to its vectors: for the three of an image its d_x takes three times as long.
On the CPU alone, as is the next."""
GREY_SIDES = (8, 16, 32)
"""Sides of images of one channel that compiled kernels convolve, in half of oneDNN's time."""
WORTH = 256
"""Operations for each number of a result from which on it is kept rather than computed again."""

Entries = dict[tuple[int, str], deque[Tensor]]


@dataclass(slots=True)
class Tape:
    """Results of one pass through a network, for another pass of the same inputs."""

    _writing: Entries | None = None
    _reading: Entries | None = None
    _left: int = 0
    _count: int = 0

    def number(self) -> int:
        """The number of the next module that uses the tape."""
        self._count += 1
        return self._count

    @contextlib.contextmanager
    def writing(self, budget_bytes: int) -> Iterator[Entries]:
        """Keep results within, up to so many bytes; gives what is kept."""
        kept: Entries = defaultdict(deque)
        self._writing, self._left = kept, budget_bytes
        try:
            yield kept
        finally:
            self._writing = None

    @contextlib.contextmanager
    def reading(self, kept: Entries) -> Iterator[None]:
        """Take results from what another pass kept; they leave it."""
        self._reading = kept
        try:
            yield
        finally:
            self._reading = None

    @property
    def replays(self) -> bool:
        """Whether results are taken from an earlier pass."""
        return self._reading is not None

    def result(self, key: tuple[int, str], worth: int, compute: Callable[[], Tensor]) -> Tensor:
        """A result: from the tape if it is there, else computed, and kept if it is worth that."""
        if self._reading is not None and self._reading.get(key):
            return self._reading[key].popleft()
        found = compute()
        if self._writing is not None and worth >= WORTH:
            size = found.numel() * found.element_size()
            if size <= self._left:
                self._left -= size
                self._writing[key].append(found.detach())
        return found


def kept_bytes(kept: Entries) -> int:
    """Memory of what a tape keeps."""
    return sum(t.numel() * t.element_size() for held in kept.values() for t in held)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What does not change from one call to the next."""

    number: int
    tape: Tape | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._grey(x, weight):
            y = x.new_empty(len(x), len(weight), *x.shape[2:])
            bias = None if bias is None else bias.contiguous()
            sizes = len(x), 1, len(weight), x.shape[2]
            kernels(x.device)("convolve", (x, weight, bias, y), *sizes)
            return y
        made: Tensor = torch.ops.aten.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, (0, 0), 1
        )
        return made

    def backward(
        self, d: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cotangents of x, weight and bias, as far as they are wanted."""
        few = wanted[0] and weight.shape[1] <= FEW and x.device.type == "cpu"
        if few and not any(wanted[1:]):
            return self._patches(d, x, weight), weight, weight
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            d, x, weight, (len(weight),), self.stride, self.padding, self.dilation, False,
            (0, 0), 1, (wanted[0] and not few, *wanted[1:]),
        )  # fmt: skip
        return (self._patches(d, x, weight), *found[1:]) if few else found

    def _grey(self, x: Tensor, weight: Tensor) -> bool:
        """Whether kernels compute it: 3x3 on images of one channel and a usual size."""
        return (
            x.device.type == "cpu"
            and weight.shape[1:] == (1, 3, 3)
            and x.shape[2] == x.shape[3]
            and x.shape[2] in GREY_SIDES
            and (self.stride, self.padding, self.dilation) == ((1, 1), (1, 1), (1, 1))
            and x.is_contiguous()
            and weight.is_contiguous()
            and x.dtype == weight.dtype
        )

    def _patches(self, d: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The cotangent of x, patch by patch."""
        if self._grey(x, weight):
            d_x = torch.empty_like(x)
            sizes = len(x), 1, len(weight), x.shape[2]
            kernels(d.device)("convolve_back", (d.contiguous(), weight, d_x), *sizes)
            return d_x
        # `matmul` would copy d to make one product of it.
        patches = torch.bmm(weight.flatten(1).t().expand(len(d), -1, -1), d.flatten(2))
        return nn.functional.fold(
            patches, x.shape[2:], weight.shape[2:], self.dilation, self.padding, self.stride
        )

    def cotangents(
        self, d: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """Those of x, weight and bias that are wanted, by way of the tape."""
        of_x, of_weight, of_bias = wanted
        d_x = None
        if self.tape is not None and self.tape.replays:
            if of_x:
                d_x = self.result(
                    "d_x", 0, lambda: self.backward(d, x, weight, (True, False, False))[0]
                )
            # Their values are never read; their derivatives do not depend on them.
            d_weight = weight.new_zeros(()).expand(weight.shape) if of_weight else None
            d_bias = weight.new_zeros(()).expand(len(weight)) if of_bias else None
            return d_x, d_weight, d_bias
        found = self.backward(d, x, weight, wanted)
        if of_x:
            worth = 2 * len(weight) * weight[0, 0].numel()
            d_x = self.result("d_x", worth, lambda: found[0])
        return d_x, found[1] if of_weight else None, found[2] if of_bias else None

    def result(self, name: str, worth: int, compute: Callable[[], Tensor]) -> Tensor:
        """See `Tape.result`."""
        if self.tape is None:
            return compute()
        return self.tape.result((self.number, name), worth, compute)


class _Forward(torch.autograd.Function):
    """(x, weight, bias) -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        worth = 2 * weight[0].numel()
        return shape.result("y", worth, lambda: shape.forward(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        of_x, *others = ctx.needs_input_grad[:3]
        x, weight = ctx.saved_tensors
        tape = ctx.shape.tape
        if tape is not None and tape.replays and x.grad_fn is None:
            of_x = False  # images are leaves: their gradient is asked for later, not here
        wanted = of_x, *others
        if torch.is_grad_enabled():  # a second derivative may follow
            products = _Backward.apply(cotangents[0], x, weight, ctx.shape, wanted)
        else:
            products = ctx.shape.cotangents(cotangents[0], x, weight, wanted)
        return *products, None


class _Backward(torch.autograd.Function):
    """(cotangent of y, x, weight) -> cotangents of x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        d: Tensor,
        x: Tensor,
        weight: Tensor,
        shape: _Shape,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(d, x, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return shape.cotangents(d, x, weight, wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what follows would be a constant to autograd
            raise RuntimeError(
                "a compiled convolution has no third derivative; run with --compile off"
            )
        d, x, weight = ctx.saved_tensors
        shape: _Shape = ctx.shape
        u, v, s = cotangents
        to_d = to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_d = _to_cotangent(shape, d, x, weight, u, v, s)
        if ctx.needs_input_grad[1] and v is not None:
            to_x = shape.backward(d, x, v, (True, False, False))[0]
        if ctx.needs_input_grad[2] and u is not None:
            to_weight = shape.backward(d, u, weight, (False, True, False))[1]
        return to_d, to_x, to_weight, None, None


def _to_cotangent(
    shape: _Shape,
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    s: Tensor | None,
) -> Tensor | None:
    """What reaches the cotangent d of the output from those of d_x, d_w and d_b."""
    if u is not None and v is not None:
        return shape.forward(torch.cat((u, x), 1), torch.cat((weight, v), 1), s)
    if u is not None:
        return shape.forward(u, weight, s)
    if v is not None:
        return shape.forward(x, v, s)
    return None if s is None else s.view(1, -1, 1, 1).expand_as(d)


class Convolution(nn.Module):
    """`nn.Conv2d` with zero padding and one group, as values and state dict go.

    Args:
        convolution: its parameters are shared.
        tape: where it writes and reads, if anywhere.
    """

    def __init__(self, convolution: nn.Conv2d, tape: Tape | None = None) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        assert not isinstance(convolution.padding, str)
        number = 0 if tape is None else tape.number()
        self._shape = _Shape(
            number, tape, convolution.stride, convolution.padding, convolution.dilation
        )
        self.train(convolution.training)

    @staticmethod
    def can_be(module: nn.Module) -> bool:
        """Whether a convolution is one of these."""
        assert isinstance(module, nn.Conv2d)
        return (
            module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,O,H',W')."""
        ours = x_BCHW.ndim == 4 and plain(x_BCHW)
        if ours and x_BCHW.device.type == "cuda":
            ours = self._shape.tape is not None  # first derivatives are as fast by torch
        if ours and not torch.is_autocast_enabled(x_BCHW.device.type):
            y: Tensor = _Forward.apply(x_BCHW, self.weight, self.bias, self._shape)
            return y
        shape = self._shape
        return nn.functional.conv2d(
            x_BCHW, self.weight, self.bias, shape.stride, shape.padding, shape.dilation
        )

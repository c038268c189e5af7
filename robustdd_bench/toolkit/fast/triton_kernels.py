"""The kernels of `robustdd_bench.toolkit.fast.blocks` on a GPU, in Triton.

Instance norm, ReLU and 2x2 average pooling in one pass: one program computes one image and one or
more of its channels, whose pixels fit into its registers. Formulas and arguments are those of
blocks.py and kernels.cpp. Tensors are contiguous, with pixels innermost (NCHW) or channels
innermost (NHWC, torch's channels_last).

Triton comes with torch where that is built for CUDA; this module is imported where it is used.
TRITON_INTERPRET=1 computes the kernels on a CPU, for the tests.

Shapes: PARTS pixels are pooled into one, BLOCK pixels are left, CB channels are computed together.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
# Triton reads the kernels itself; their arguments are tensors' addresses and numbers.

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_PIXELS = 2**14
"""Of an image, as far as one program can hold them."""
TILE = 2**13
"""Numbers of a tensor that a program holds, where channels are innermost."""


@triton.jit
def _places(H, W, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Where the pixels are that are pooled together (PARTS,BLOCK,1), and which are there at all."""
    part = tl.arange(0, PARTS)[:, None, None]
    at = tl.arange(0, BLOCK)[None, :, None]
    if PARTS == 4:
        half = W // 2
        where = (2 * (at // half) + part // 2) * W + 2 * (at % half) + part % 2
        there = (at < (H // 2) * half) & (part >= 0)
    else:
        where = at + part
        there = (at < H * W) & (part >= 0)
    return where, there


@triton.jit
def _channels(C, CB: tl.constexpr):
    """The image of this program, and its channels (CB,)."""
    groups = (C + CB - 1) // CB
    image = (tl.program_id(0) // groups).to(tl.int64)
    return image, (tl.program_id(0) % groups) * CB + tl.arange(0, CB)


@triton.jit
def _pixels(image, c, where, C, size, INNER: tl.constexpr):
    """Where the numbers of pixels `where` and channels `c` of an image of `size` pixels are."""
    base = image * C * size
    if INNER:
        return base + where * C + c[None, None, :]
    return base + where + c[None, None, :] * size


@triton.jit
def _pooled(image, c, C, size, BLOCK: tl.constexpr, INNER: tl.constexpr):
    """Where the pooled numbers (BLOCK,CB) of channels `c` are, and which there are."""
    out = tl.arange(0, BLOCK)[:, None]
    there = (out < size) & (c[None, :] < C)
    base = image * C * size
    if INNER:
        return base + out * C + c[None, :], there
    return base + out + c[None, :] * size, there


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=0), axis=0)


@triton.jit
def _each(v):
    return v[None, None, :]


@triton.jit
def _forward(
    x_at, g_at, b_at, y_at, m_at, r_at, C, H, W, epsilon,
    RELU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, CB: tl.constexpr,
    INNER: tl.constexpr,
):  # fmt: skip
    image, c = _channels(C, CB)
    known = c < C
    where, there = _places(H, W, PARTS, BLOCK)
    there = there & _each(known)
    x = tl.load(x_at + _pixels(image, c, where, C, H * W, INNER), mask=there, other=0.0)
    m = _total(x) / (H * W)
    centred = tl.where(there, x - _each(m), 0.0)
    r = 1.0 / tl.sqrt(_total(centred * centred) / (H * W) + epsilon)
    g, b = tl.load(g_at + c, mask=known, other=0.0), tl.load(b_at + c, mask=known, other=0.0)
    y = centred * _each(g * r) + _each(b)
    if RELU:
        y = tl.maximum(y, 0.0)
    to, some = _pooled(image, c, C, H * W // PARTS, BLOCK, INNER)
    tl.store(y_at + to, tl.sum(y, axis=0) / PARTS, mask=some)
    tl.store(m_at + image * C + c, m, mask=known)
    tl.store(r_at + image * C + c, r, mask=known)


@triton.jit
def _cotangent(e_at, image, c, z, g, b, C, H, W, there, RELU: tl.constexpr, PARTS: tl.constexpr,
               BLOCK: tl.constexpr, INNER: tl.constexpr):  # fmt: skip
    """The cotangent [g z + b > 0] A^T e (PARTS,BLOCK,CB), and where it may be other than 0."""
    at, some = _pooled(image, c, C, H * W // PARTS, BLOCK, INNER)
    e = tl.load(e_at + at, mask=some, other=0.0)
    open_ = there
    if RELU:
        open_ = there & (_each(g) * z + _each(b) > 0)
    return tl.where(open_, e[None, :, :] / PARTS, 0.0), open_


@triton.jit
def _backward(
    e_at, x_at, g_at, b_at, m_at, r_at, dx_at, dg_at, db_at, C, H, W,
    RELU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, CB: tl.constexpr,
    INNER: tl.constexpr,
):  # fmt: skip
    image, c = _channels(C, CB)
    known = c < C
    where, there = _places(H, W, PARTS, BLOCK)
    there = there & _each(known)
    g, b = tl.load(g_at + c, mask=known, other=0.0), tl.load(b_at + c, mask=known, other=0.0)
    m = tl.load(m_at + image * C + c, mask=known, other=0.0)
    r = tl.load(r_at + image * C + c, mask=known, other=0.0)
    at = _pixels(image, c, where, C, H * W, INNER)
    x = tl.load(x_at + at, mask=there, other=0.0)
    z = tl.where(there, (x - _each(m)) * _each(r), 0.0)
    d, _ = _cotangent(e_at, image, c, z, g, b, C, H, W, there, RELU, PARTS, BLOCK, INNER)
    d_sum, dz_sum = _total(d), _total(d * z)
    d_x = _each(r * g) * (d - _each(d_sum / (H * W)) - z * _each(dz_sum / (H * W)))
    tl.store(dx_at + at, d_x, mask=there)
    tl.store(dg_at + image * C + c, dz_sum, mask=known)
    tl.store(db_at + image * C + c, d_sum, mask=known)


@triton.jit
def _second(
    u_at, p_at, q_at, e_at, x_at, g_at, b_at, m_at, r_at, to_e_at, to_x_at, to_g_at, C, H, W,
    RELU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, CB: tl.constexpr,
    INNER: tl.constexpr,
):  # fmt: skip
    image, c = _channels(C, CB)
    known = c < C
    n = H * W
    where, there = _places(H, W, PARTS, BLOCK)
    there = there & _each(known)
    g, b = tl.load(g_at + c, mask=known, other=0.0), tl.load(b_at + c, mask=known, other=0.0)
    p, q = tl.load(p_at + c, mask=known, other=0.0), tl.load(q_at + c, mask=known, other=0.0)
    m = tl.load(m_at + image * C + c, mask=known, other=0.0)
    r = tl.load(r_at + image * C + c, mask=known, other=0.0)
    at = _pixels(image, c, where, C, n, INNER)
    x = tl.load(x_at + at, mask=there, other=0.0)
    u = tl.load(u_at + at, mask=there, other=0.0)
    z = tl.where(there, (x - _each(m)) * _each(r), 0.0)
    d, open_ = _cotangent(e_at, image, c, z, g, b, C, H, W, there, RELU, PARTS, BLOCK, INNER)
    u_mean, d_mean = _total(u) / n, _total(d) / n
    a, k = _total(u * z) / n, _total(d * z) / n
    common = _total(u * d) / n - u_mean * d_mean - a * k
    to_d = _each(r * g) * (u - _each(u_mean) - z * _each(a)) + _each(p) * z + _each(q)
    to_d = tl.where(open_, to_d, 0.0)
    to, some = _pooled(image, c, C, n // PARTS, BLOCK, INNER)
    tl.store(to_e_at + to, tl.sum(to_d, axis=0) / PARTS, mask=some)
    of_d, of_u = p - r * g * a, -r * g * k
    v = _each(of_d) * d + _each(of_u) * u
    v_mean, vz_mean = of_d * d_mean + of_u * u_mean, of_d * k + of_u * a
    to_x = _each(r) * (v - _each(v_mean) - z * _each(vz_mean)) - _each(r * r * g * common) * z
    tl.store(to_x_at + at, to_x, mask=there)
    tl.store(to_g_at + image * C + c, n * r * common, mask=known)


def fits(height: int, width: int, pooled: bool) -> bool:
    """Whether images of a size can be computed: not too large, and with even sides to be pooled."""
    return height * width <= MOST_PIXELS and not (pooled and (height % 2 or width % 2))


def call(
    name: str, tensors: Sequence[Tensor | None], *numbers: float, channels_last: bool = False
) -> None:
    """As `robustdd_bench.toolkit.fast.compile.Kernels`: contiguous tensors of one dtype, numbers.

    Args:
        name: "forward", "backward" or "second".
        tensors: see kernels.cpp.
        numbers: planes, C, H, W, epsilon for "forward" alone, relu, pooled.
        channels_last: whether channels are innermost in all images.
    """
    planes, C, H, W = (int(number) for number in numbers[:4])
    *rest, relu, pooled = numbers[4:]
    parts = 4 if pooled else 1
    block = triton.next_power_of_2(max(H * W // parts, 1))
    together = 1
    if channels_last:
        most = max(TILE // (block * parts), 1)
        together = min(triton.next_power_of_2(C), 2 ** (most.bit_length() - 1))
    programs = planes // C * -(-C // together)
    kernel = {"forward": _forward, "backward": _backward, "second": _second}[name]
    first = tensors[0]
    assert first is not None
    with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
        kernel[(programs,)](
            *tensors, C, H, W, *rest, RELU=bool(relu), PARTS=parts, BLOCK=block,
            CB=together, INNER=channels_last,
            num_warps=min(max(block * parts * together // 256, 1), 8),
        )  # fmt: skip

"""The kernels of `robustdd_bench.toolkit.fast.blocks` on a GPU, in Triton.

Instance norm, ReLU and 2x2 average pooling in one pass: one program for each image and channel,
whose pixels fit into its registers. Formulas and arguments are those of blocks.py and kernels.cpp.
With channels innermost (torch's channels_last) the same kernels, of several channels a program,
were slower on an H200: benchmarks/gpu/README.md.

Triton comes with torch where that is built for CUDA; this module is imported where it is used.
TRITON_INTERPRET=1 computes the kernels on a CPU, for the tests.
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


@triton.jit
def _places(H, W, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Where the pixels are that are pooled together (PARTS,BLOCK), and which are there at all."""
    part = tl.arange(0, PARTS)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    if PARTS == 4:
        half = W // 2
        where = (2 * (at // half) + part // 2) * W + 2 * (at % half) + part % 2
        there = (at < (H // 2) * half) & (part >= 0)
    else:
        where = at + part
        there = (at < H * W) & (part >= 0)
    return where, there


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=0), axis=0)


@triton.jit
def _forward(
    x_at, g_at, b_at, y_at, m_at, r_at, C, H, W, epsilon,
    RELU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    where, there = _places(H, W, PARTS, BLOCK)
    x = tl.load(x_at + plane * H * W + where, mask=there, other=0.0)
    m = _total(x) / (H * W)
    centred = tl.where(there, x - m, 0.0)
    r = 1.0 / tl.sqrt(_total(centred * centred) / (H * W) + epsilon)
    y = tl.load(g_at + plane % C) * centred * r + tl.load(b_at + plane % C)
    if RELU:
        y = tl.maximum(y, 0.0)
    size = H * W // PARTS
    out = tl.arange(0, BLOCK)
    tl.store(y_at + plane * size + out, tl.sum(y, axis=0) / PARTS, mask=out < size)
    tl.store(m_at + plane, m)
    tl.store(r_at + plane, r)


@triton.jit
def _cotangent(e_at, plane, z, g, b, H, W, there, RELU: tl.constexpr, PARTS: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """The cotangent [g z + b > 0] A^T e, (PARTS,BLOCK), and where it may be other than 0."""
    size = H * W // PARTS
    out = tl.arange(0, BLOCK)
    e = tl.load(e_at + plane * size + out, mask=out < size, other=0.0)
    open_ = there
    if RELU:
        open_ = there & (g * z + b > 0)
    return tl.where(open_, e[None, :] / PARTS, 0.0), open_


@triton.jit
def _backward(
    e_at, x_at, g_at, b_at, m_at, r_at, dx_at, dg_at, db_at, C, H, W,
    RELU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    where, there = _places(H, W, PARTS, BLOCK)
    g, b = tl.load(g_at + plane % C), tl.load(b_at + plane % C)
    m, r = tl.load(m_at + plane), tl.load(r_at + plane)
    x = tl.load(x_at + plane * H * W + where, mask=there, other=0.0)
    z = tl.where(there, (x - m) * r, 0.0)
    d, _ = _cotangent(e_at, plane, z, g, b, H, W, there, RELU, PARTS, BLOCK)
    d_sum, dz_sum = _total(d), _total(d * z)
    d_x = r * g * (d - d_sum / (H * W) - z * (dz_sum / (H * W)))
    tl.store(dx_at + plane * H * W + where, d_x, mask=there)
    tl.store(dg_at + plane, dz_sum)
    tl.store(db_at + plane, d_sum)


@triton.jit
def _second(
    u_at, p_at, q_at, e_at, x_at, g_at, b_at, m_at, r_at, to_e_at, to_x_at, to_g_at, C, H, W,
    RELU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    n = H * W
    where, there = _places(H, W, PARTS, BLOCK)
    g, b = tl.load(g_at + plane % C), tl.load(b_at + plane % C)
    p, q = tl.load(p_at + plane % C), tl.load(q_at + plane % C)
    m, r = tl.load(m_at + plane), tl.load(r_at + plane)
    x = tl.load(x_at + plane * n + where, mask=there, other=0.0)
    u = tl.load(u_at + plane * n + where, mask=there, other=0.0)
    z = tl.where(there, (x - m) * r, 0.0)
    d, open_ = _cotangent(e_at, plane, z, g, b, H, W, there, RELU, PARTS, BLOCK)
    u_mean, d_mean = _total(u) / n, _total(d) / n
    a, c = _total(u * z) / n, _total(d * z) / n
    common = _total(u * d) / n - u_mean * d_mean - a * c
    to_d = tl.where(open_, r * g * (u - u_mean - z * a) + p * z + q, 0.0)
    size = n // PARTS
    out = tl.arange(0, BLOCK)
    tl.store(to_e_at + plane * size + out, tl.sum(to_d, axis=0) / PARTS, mask=out < size)
    of_d, of_u = p - r * g * a, -r * g * c
    v = of_d * d + of_u * u
    v_mean, vz_mean = of_d * d_mean + of_u * u_mean, of_d * c + of_u * a
    to_x = r * (v - v_mean - z * vz_mean) - r * r * g * common * z
    tl.store(to_x_at + plane * n + where, to_x, mask=there)
    tl.store(to_g_at + plane, n * r * common)


def fits(height: int, width: int, pooled: bool) -> bool:
    """Whether images of a size can be computed: not too large, and with even sides to be pooled."""
    return height * width <= MOST_PIXELS and not (pooled and (height % 2 or width % 2))


def call(name: str, tensors: Sequence[Tensor | None], *numbers: float) -> None:
    """As `robustdd_bench.toolkit.fast.compile.Kernels`: contiguous tensors of one dtype, numbers.

    Args:
        name: "forward", "backward" or "second".
        tensors: see kernels.cpp.
        numbers: planes, C, H, W, epsilon for "forward" alone, relu, pooled.
    """
    planes, C, H, W = (int(number) for number in numbers[:4])
    *rest, relu, pooled = numbers[4:]
    parts = 4 if pooled else 1
    block = triton.next_power_of_2(max(H * W // parts, 1))
    kernel = {"forward": _forward, "backward": _backward, "second": _second}[name]
    first = tensors[0]
    assert first is not None
    with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
        kernel[(planes,)](
            *tensors, C, H, W, *rest, RELU=bool(relu), PARTS=parts, BLOCK=block,
            num_warps=min(max(block * parts // 256, 1), 8),
        )  # fmt: skip

"""Randomness per example: the same noise whatever the batch, the device or the order.

An attack that draws its start from one generator gives an example other noise when the batch size
changes or when broken examples leave the batch. Here noise is a hash: value j of draw t of example
i is splitmix64 of (seed, i, t, j), computed in int64 on the examples' device, so bits, integers
and uniform numbers are exactly the same on CPU and GPU. (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators".)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def as_int64(n: int) -> int:
    """The lowest 64 bits of a Python integer, as a signed one."""
    return (n + 2**63) % 2**64 - 2**63


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 tensors shift arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 tensors (wrapping multiplication)."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


class ExampleGenerator:
    """A stream of random numbers for each example of a batch.

    Args:
        seed: seed of the attack, any integer (its lowest 64 bits count); or (B,) int64, a seed
            for each example.
        index: (B,) integers, what identifies each example (its place in the evaluation split).
        draws: how many draws of these streams were used before.
    """

    def __init__(self, seed: int | Tensor, index: Tensor, *, draws: int = 0) -> None:
        self._seed = seed if isinstance(seed, Tensor) else as_int64(seed)
        self.index = index.long()
        self._draws = draws
        self._key = splitmix64(splitmix64(self.index) ^ self._seed)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def seed(self) -> int:
        """The one seed of all examples, for code that brings a generator of its own.

        Raises:
            ValueError: each example has a seed of its own.
        """
        if isinstance(self._seed, Tensor):
            raise ValueError("each example of this batch has a seed of its own")
        return self._seed

    def select(self, keep: Tensor) -> ExampleGenerator:
        """The streams of some of the examples, at the same point (`keep`: indices or a mask).

        The two generators then move on their own: go on with the one that is returned.
        """
        seed = self._seed[keep] if isinstance(self._seed, Tensor) else self._seed
        return ExampleGenerator(seed, self.index[keep], draws=self._draws)

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Random int64 of shape (B, *shape); one draw."""
        size = math.prod(shape)
        place = torch.arange(size, device=self.index.device)
        stream = splitmix64(self._key + as_int64(self._draws * _MIX_1))
        self._draws += 1
        return splitmix64(stream.unsqueeze(1) + place * _GOLDEN).view(len(self), *shape)

    def uniform(
        self,
        shape: Sequence[int],
        low: float = 0.0,
        high: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform numbers from `low` to `high`, shape (B, *shape); one draw.

        In [0, 1) with the default bounds; with others `high` itself may come up by rounding.
        """
        mantissa = 1 - round(math.log2(torch.finfo(dtype).eps))  # 24 bits of float32
        unit = _shift_right(self.bits(shape), 64 - mantissa).to(dtype) * 2.0**-mantissa
        return low + (high - low) * unit

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, shape (B, *shape) (Box and Muller); two draws.

        Logarithm and cosine differ between devices in the last bit.
        """
        wide = torch.promote_types(dtype, torch.float32)
        radius = (1 - self.uniform(shape, dtype=wide)).log().mul(-2).sqrt()
        return (radius * (2 * math.pi * self.uniform(shape, dtype=wide)).cos()).to(dtype)

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """Integers in [0, high), shape (B, *shape); one draw.

        Raises:
            ValueError: `high` is not in 1..2**31.
        """
        if not 0 < high <= 2**31:
            raise ValueError(f"high must lie in 1..2**31, not {high}")
        return (_shift_right(self.bits(shape), 32) * high) >> 32

"""Seeds by axis, local generators, and randomness per example.

A seed is a hash of (base, track, method, repetition, purpose, index...). Axes that are left out do
not change it: students and attacks are seeded without the method, so that every method is judged
on the same initialisations and the same attack noise, while repetitions differ in all of them.

An attack that draws its start from one generator gives an example other noise when the batch size
changes or when broken examples leave the batch. An `ExampleGenerator` hashes instead: value j of
draw t of example i is splitmix64 of (seed, i, t, j), computed in int64 on the examples' device, so
bits, integers and uniform numbers are exactly the same on CPU and GPU. (Steele, Lea, Flood 2014,
"Fast splittable pseudorandom number generators".)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def derive_seed(*axes: str | int) -> int:
    """A 63-bit seed from a tuple of axes, the same on every machine and Python version."""
    digest = hashlib.sha256(json.dumps(axes, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Seeds:
    """The seeds of one run: `base` is --seed, the rest are axes."""

    base: int
    track: str
    method: str = ""

    def seed(self, purpose: str, *index: str | int) -> int:
        """The seed for a purpose, e.g. ``seed("expert", 3)``."""
        return derive_seed(self.base, self.track, self.method, purpose, *index)

    def generator(
        self, purpose: str, *index: str | int, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A fresh generator on `device`, seeded for a purpose."""
        generator = torch.Generator(device=device)
        generator.manual_seed(self.seed(purpose, *index))
        return generator

    def for_method(self, scheme: int) -> Seeds:
        """The seeds that a method gets, under a track's seed scheme.

        Args:
            scheme: 1: these, so that a method can compute those of students and attacks. 2: of
                another base, a hash of this one, so that they do not follow from what it gets.
        """
        if scheme == 1:
            return self
        return Seeds(derive_seed("methods", scheme, self.base), self.track, self.method)

    def shared(self) -> Seeds:
        """The same seeds without the method: what all methods of a track have in common."""
        return Seeds(self.base, self.track)


@contextlib.contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run code that can only use the global CPU generator, and leave that generator untouched.

    Network initialisers are such code. Networks are therefore built on the CPU, which also gives
    the same weights on every device.
    """
    state = torch.random.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.random.set_rng_state(state)


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of numpy and Python, and leave them untouched afterwards.

    It is for the code of plugins: one that draws from them repeats itself from run to run.
    """
    import random

    import numpy as np

    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])


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

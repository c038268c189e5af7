"""Seeds by axis, and local generators.

A seed is a hash of (base, track, method, repetition, purpose, index...). Axes that are left out do
not change it: students and attacks are seeded without the method, so that every method is judged
on the same initialisations and the same attack noise, while repetitions differ in all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch


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

"""Outcomes per example ("bits"): bool (N,) on the CPU; True says that a student is right.

Headline accuracy is the mean over examples of the worst case over attacks, never the least of the
attacks' means.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError


def worst_case(
    outcomes: Mapping[tuple[str, float], Tensor], clean: Tensor, ladder: Sequence[float]
) -> dict[float, Tensor]:
    """Per example the worst case over attacks, and over every eps that is not larger.

    An adversarial example found at a smaller eps lies in every larger ball too, so accuracy never
    rises with eps.

    Args:
        outcomes: (attack, eps) to robust bits (N,).
        clean: bits (N,) without an attack.
        ladder: the eps to report.

    Returns:
        Each eps of the ladder, rising, to bits (N,).

    Raises:
        UsageError: no attack was run at an eps of the ladder, or the bits differ in length.
    """
    for (name, eps), bits in outcomes.items():
        if bits.shape != clean.shape:
            raise UsageError(
                f"attack {name!r} at eps {eps:g} has {len(bits)} outcomes for {len(clean)} examples"
            )
    worst = {}
    for level in sorted(ladder):
        if not any(eps == level for _, eps in outcomes):
            raise UsageError(f"no attack was run at eps {level:g} of the ladder")
        robust = clean.cpu().bool().clone()
        for (_, eps), bits in outcomes.items():
            if eps <= level:
                robust &= bits.cpu().bool()
        worst[level] = robust
    return worst


class OutcomeAtEps(Protocol):
    """An outcome: what stood at an eps."""

    @property
    def threat(self) -> ThreatModel:
        """Norm and eps."""

    @property
    def robust(self) -> Tensor:
        """Bits (N,)."""


def standing(clean: Tensor, outcomes: Iterable[OutcomeAtEps], eps: float) -> Tensor:
    """Bits (N,): right without an attack, and after every one of them at no larger eps."""
    left = clean.clone()
    for outcome in outcomes:
        if outcome.threat.eps <= eps:
            left &= outcome.robust
    return left


def accuracy(bits: Tensor) -> float:
    """Share of examples that are right."""
    return int(bits.sum()) / len(bits)


def pack_bits(bits: Tensor) -> str:
    """Bits (N,) as text: "N:" and base64 of them, eight in a byte, the first the highest."""
    packed = np.packbits(bits.cpu().numpy().astype(bool))
    return f"{len(bits)}:{base64.b64encode(packed.tobytes()).decode('ascii')}"


def unpack_bits(text: str) -> Tensor:
    """The inverse of `pack_bits`.

    Raises:
        UsageError: the text is not what `pack_bits` writes.
    """
    count, _, encoded = text.partition(":")
    try:
        if not (count.isascii() and count.isdigit()) or len(count) > 12:
            raise ValueError("no number of bits")
        size = int(count)
        data = base64.b64decode(encoded.encode("ascii"), validate=True)
        if len(data) != math.ceil(size / 8):
            raise ValueError(f"{len(data)} bytes for {size} bits")
        bits = torch.from_numpy(np.unpackbits(np.frombuffer(data, np.uint8))[:size].astype(bool))
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"not a bit mask ('N:base64'): {error}") from error
    if pack_bits(bits) != text:
        raise UsageError("not a bit mask ('N:base64'): it is not in its canonical form")
    return bits


def first_bits(bits: Tensor, examples: int | None) -> Tensor:
    """The bits (N,), with none set after the first so many examples (None: as they are)."""
    kept = bits.clone()
    kept[len(kept) if examples is None else examples :] = False
    return kept

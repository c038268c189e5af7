"""Means with two kinds of uncertainty, which are never mixed.

- Over students: the standard deviation (ddof 1) of the students' accuracies. It tells what another
  seed of training would change.
- Over examples: Wilson's score interval (Wilson 1927, "Probable inference") of the mean accuracy.
  It tells what another test split would change. Its n is the number of examples, not examples
  times students: students are judged on the same examples, so more students do not make the split
  larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from robustdd_bench.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """An accuracy over the students of a run."""

    mean: float
    std: float | None
    """Over students, ddof 1; None for a single student."""
    low: float
    """Lower end of Wilson's interval over examples."""
    high: float
    """Upper end of Wilson's interval over examples."""
    values: tuple[float, ...]
    """One accuracy a student, in [0,1]."""
    n_students: int
    n_examples: int


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, rounded once.

    Raises:
        UsageError: there is no value.
    """
    if not values:
        raise UsageError("the mean of no values was asked for")
    return math.fsum(values) / len(values)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (len(values) - 1))


def wilson_interval(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n examples, inside [0,1].

    Args:
        share: in [0,1]; a mean over students, so `share * n` need not be whole.
        n: number of examples.
        confidence: two-sided.

    Raises:
        UsageError: a value is out of range.
    """
    if n < 1 or not 0 <= share <= 1 or not 0 < confidence < 1:
        raise UsageError(
            f"an interval needs n >= 1, a share in [0,1] and a confidence in (0,1), not n = {n}, "
            f"share = {share}, confidence = {confidence}"
        )
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past the share.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def aggregate(values: Sequence[float], n_examples: int) -> Aggregate:
    """Summarise the accuracies of a run's students.

    Args:
        values: one accuracy a student, in [0,1].
        n_examples: examples that each of them was judged on.

    Raises:
        UsageError: there is no student, no example, or a value outside [0,1].
    """
    if not all(0 <= x <= 1 for x in values):
        raise UsageError("accuracies must lie in [0,1]")
    centre = mean(values)
    low, high = wilson_interval(centre, n_examples)
    return Aggregate(
        mean=centre,
        std=standard_deviation(values),
        low=low,
        high=high,
        values=tuple(values),
        n_students=len(values),
        n_examples=n_examples,
    )

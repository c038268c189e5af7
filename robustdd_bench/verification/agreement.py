"""Does a second evaluation of the same distilled set agree with what was claimed of it?

Shape letters: L levels (clean and every eps), K students, N examples. An outcome is a bit: right
or not. Claimed and found are about the same examples and students of the same seeds, so the
difference is the mean over K, N of claimed minus found, and other test images are no part of its
uncertainty. What is left is why the same student may come out otherwise. Let d be the share of
outcomes that differ.

**The same weights.** On the same machine and torch training repeats bit for bit. An attack can
still stop at another point by rounding, where batches are cut otherwise. Each outcome that differs
then falls to either side by itself, as in McNemar's test (1947): the difference of a student has
the variance d/N. No more than d = .02 is believed to be rounding.

**Other weights.** Rounding grows over a training (other hardware, another torch): a little, or
until the two students are like students of two seeds. Outcomes that differ then also differ
together, because one student is the better one, and the variance is d/N + (.25 d)^2, with two
outcomes added that differ and two that do not (Agresti and Coull 1998), so that one student has an
interval too. It is at most 2 s^2, that of two independent draws, with s^2 the variance of a
student's accuracy on these examples: the larger of that over the students found (for K > 1) and
1.5 times the binomial one, p(1-p)/N, of the share p found. That bound uses nothing that was
claimed: whoever scrambles outcomes, or claims of one student much and of another little, would
otherwise widen the interval at will, as in a bootstrap of the paired differences.

.25 and 1.5 come from the 90 records published with them (5 students, 359 examples, accuracies from
0 to 99 %): two students of one set, of different seeds, taken as claimed and found are refused in
4 % of cases, and so are two pairs of students.

**Interval.** The difference plus and minus a normal quantile times its standard deviation; that of
a mean over K students, which are trained independently, has the K-th part of the variance. The
quantile is that of .05/L: the L intervals hold together with 95 % (Bonferroni), because one level
is enough to refuse a record. On many images it becomes narrower than what the arithmetic of
another device may do to every attack alike, so a difference of a quarter of a point is let pass
whatever its interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics.comparison import CONFIDENCE, Bits, Interval

ROUNDING = 0.02
"""Largest share of outcomes that may differ by rounding where the weights are the same."""
TOGETHER = 0.25
"""Standard deviation of a student's difference, as a share of the outcomes that differ."""
OVERDISPERSION = 1.5
"""Least variance of a student's accuracy over trainings, in binomial variances."""
TOLERANCE = 0.0025
"""A difference that is never a reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Claimed and found at one level; accuracies in [0,1], means over students."""

    claimed: float
    found: float
    difference: float
    """claimed - found."""
    interval: Interval
    """Of the difference; 95 % for all levels together."""

    @property
    def agrees(self) -> bool:
        """Whether there may be no difference, or it is too small to matter."""
        return self.interval.holds_zero or abs(self.difference) <= TOLERANCE

    @property
    def lower(self) -> bool:
        """Whether less is claimed than was found."""
        return not self.agrees and self.difference < 0


def agreement(
    claimed_LKN: Bits, found_LKN: Bits, same_weights: Sequence[bool]
) -> tuple[Agreement, ...]:
    """Hold what was found against what was claimed, level by level.

    Args:
        claimed_LKN: outcomes claimed.
        found_LKN: outcomes of the same students and examples.
        same_weights: of each of the K students, whether both are the same, bit for bit.

    Raises:
        UsageError: the shapes differ, or an axis is empty.
    """
    levels, students, examples = found_LKN.shape if found_LKN.ndim == 3 else (0, 0, 0)
    if claimed_LKN.shape != found_LKN.shape or 0 in (levels, students, examples) or (
        len(same_weights) != students
    ):  # fmt: skip
        raise UsageError(
            f"outcomes need one shape (levels, students, examples), not {claimed_LKN.shape} and "
            f"{found_LKN.shape} with {len(same_weights)} students"
        )
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * levels))
    same = np.array(same_weights, bool)
    size = students * examples
    rows = []
    for claimed_KN, found_KN in zip(claimed_LKN, found_LKN, strict=True):
        differs = claimed_KN != found_KN
        variance = _rounded(differs[same]) + _retrained(differs[~same], found_KN)
        difference = (int(claimed_KN.sum()) - int(found_KN.sum())) / size
        half = z * math.sqrt(variance) / students
        rows.append(
            Agreement(
                claimed=int(claimed_KN.sum()) / size,
                found=int(found_KN.sum()) / size,
                difference=difference,
                interval=Interval(
                    low=max(-1.0, difference - half), high=min(1.0, difference + half)
                ),
            )
        )
    return tuple(rows)


def _rounded(differs_KN: Bits) -> float:
    """Variance of the sum over students of the same weights of their differences."""
    students, examples = differs_KN.shape
    differ = int(differs_KN.sum()) / differs_KN.size if students else 0.0
    variance: float = students * min(differ, ROUNDING) / examples
    return variance


def _retrained(differs_KN: Bits, found_KN: Bits) -> float:
    """The same of other weights; `found_KN` are the outcomes of all students."""
    students, examples = differs_KN.shape
    differ = (int(differs_KN.sum()) + 2) / (differs_KN.size + 4)
    paired = differ / examples + (TOGETHER * differ) ** 2
    share = (int(found_KN.sum()) + 2) / (found_KN.size + 4)
    spread = OVERDISPERSION * share * (1 - share) / examples
    if len(found_KN) > 1:
        spread = max(spread, float(found_KN.mean(1).var(ddof=1)))
    variance: float = students * min(paired, 2 * spread)
    return variance

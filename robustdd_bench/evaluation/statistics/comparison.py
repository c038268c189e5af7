"""Paired comparison of two methods on the same examples, distillation seeds and students.

Shape letters: L levels (clean and every eps), S distillation seeds, R students of a set, N
examples, M methods, B resamples. An outcome is a bit: right or not. The difference of two methods
is the mean over S, R, N of their outcomes' difference; what an example, a seed or a student does
to both drops out of it.

**Interval.** A bootstrap percentile interval over what could have come out otherwise: the test
split, the distilled sets, the trainings. Examples are crossed with seeds and students (each
student is judged on the same examples), so both factors are drawn on their own and their weights
multiplied: the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap"), which errs towards
wider intervals (Owen and Eckles 2012). Students are nested in seeds: seeds are drawn first, then
students of each seed drawn. Both methods get the same draws. Each level draws one fewer than it
has, at least one: with replacement, n - 1 draws give a mean the variance s^2/n without bias, where
n draws give (n - 1)/n of it, a third too little at three seeds (McCarthy and Snowden 1985). Drawing
students within seeds counts their variance a second time (Davison and Hinkley 1997, section 3.8);
it is kept because three seeds say little of the tails, so that the interval errs towards width. On
made-up outcomes (300 repetitions, 359 examples, 3 seeds of 5 students) it held the truth in 98 %
of cases, and in 89 % where seeds dominate.

What the interval cannot say: with one seed, nothing is known of other distilled sets, and it holds
for that seed's sets alone; with two or three it is a rough guide. No correction is made for
looking at several eps or several methods.

**Test.** McNemar's test (1947) in its exact binomial form, on the examples that exactly one of the
two networks gets right. Trainings share their examples, so pooling their tables would treat
dependent pairs as independent; the majority over students is another classifier than those that
were measured. Here every pair of networks is tested alone, and the p-values are combined by
Rüger's rule (1978): with the k-th smallest of n as p, min(1, p n/k) is a p-value whatever the
dependence. k is the middle one: "twice the median p-value" (Meinshausen, Meier and Bühlmann 2009).
McNemar's test takes both networks as given (Dietterich 1998): it asks whether they differ on
examples like these, not whether other seeds would; that is the interval's part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robustdd_bench.errors import UsageError

Bits = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 19470618
CHUNK = 250
"""Resamples drawn at once; part of what the draws are, so it must not depend on the data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An interval of an accuracy, or of a difference of two."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """No difference is among what the interval allows."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two methods at one level; accuracies in [0,1]."""

    a: float
    b: float
    difference: float
    """a - b."""
    interval: Interval
    """95 %, of the difference."""
    p: float
    """McNemar's, combined over pairs of networks."""


class Resamples:
    """Accuracies of some methods under the same draws of seeds, students and examples.

    The draws depend on S, R and N alone. Every sum is a whole number and exact, so that the
    interval of a pair is the same whichever methods stand beside it, and swaps its sign with it.

    Args:
        outcomes_MSRN: of each method; S, R and N are shared.
        resamples: how many draws.

    Raises:
        UsageError: an axis is empty, or there are too few resamples for an interval.
    """

    def __init__(self, outcomes_MSRN: Bits, resamples: int = RESAMPLES) -> None:
        if outcomes_MSRN.ndim != 4 or 0 in outcomes_MSRN.shape:
            raise UsageError(
                f"outcomes need the shape (methods, seeds, students, examples), not "
                f"{outcomes_MSRN.shape}"
            )
        if resamples < 1 / (1 - CONFIDENCE):
            raise UsageError(f"{resamples} resamples are too few for a {CONFIDENCE:.0%} interval")
        methods, *shape = outcomes_MSRN.shape
        seeds, students, examples = shape
        # Counts below 2^24 are exact in float32, whose product is twice as fast.
        kind = np.float32 if examples < 2**24 else np.float64
        flat: npt.NDArray[Any] = outcomes_MSRN.reshape(-1, examples).T.astype(kind)
        parts = []
        for units_bU, examples_bN in _draws(seeds, students, examples, resamples):
            sums = (examples_bN.astype(kind) @ flat).reshape(len(units_bU), methods, -1)
            parts.append(np.einsum("bmu,bu->bm", sums.astype(np.float64), units_bU))
        self.sums_BM = np.concatenate(parts)
        self.total = math.prod(map(_drawn, shape))

    def interval(self, a: int, b: int | None = None) -> Interval:
        """Percentile interval of the accuracy of method `a`, minus that of `b` if there is one."""
        values = self.sums_BM[:, a] - (0 if b is None else self.sums_BM[:, b])
        cut = math.floor(len(values) * (1 - CONFIDENCE) / 2)
        ends = cut, len(values) - 1 - cut
        low, high = (float(value) for value in np.partition(values, ends)[list(ends)])
        return Interval(low=low / self.total, high=high / self.total)


def _drawn(n: int) -> int:
    """How many of n are drawn."""
    return max(1, n - 1)


def _draws(
    seeds: int, students: int, examples: int, resamples: int
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """How often each network (b, S*R) and each example (b, N) is drawn, some resamples at once."""
    rng = np.random.default_rng(SEED)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        seed_bs = rng.integers(seeds, size=(size, _drawn(seeds), 1))
        student_bsr = rng.integers(students, size=(size, _drawn(seeds), _drawn(students)))
        example_bn = rng.integers(examples, size=(size, _drawn(examples)))
        network_bu = (seed_bs * students + student_bsr).reshape(size, -1)
        yield (
            _counts(network_bu, seeds * students).astype(np.float64),
            _counts(example_bn, examples),
        )


def _counts(drawn_bn: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """How often each of 0..n-1 stands in each row: (b, n)."""
    rows = len(drawn_bn)
    flat = drawn_bn + n * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * n).reshape(rows, n)


def accuracy_intervals(outcomes_LSRN: Bits, resamples: int = RESAMPLES) -> list[Interval]:
    """The interval of a method's accuracy at each level, by the bootstrap of `compare`.

    Args:
        outcomes_LSRN: outcomes of the method.
        resamples: of the bootstrap.

    Raises:
        UsageError: an axis is empty.
    """
    drawn = Resamples(outcomes_LSRN, resamples)
    return [drawn.interval(level) for level in range(len(outcomes_LSRN))]


def mcnemar(a_UN: Bits, b_UN: Bits) -> float:
    """Two-sided p-value that networks of A and B are right equally often on such examples.

    Args:
        a_UN: outcomes of A's U networks.
        b_UN: outcomes of B's, the u-th paired with A's u-th.

    Raises:
        UsageError: the shapes differ, or there is no network.
    """
    if a_UN.shape != b_UN.shape or a_UN.ndim != 2 or len(a_UN) == 0:
        raise UsageError(f"paired outcomes need one shape, not {a_UN.shape} and {b_UN.shape}")
    from scipy.stats import binomtest  # .7 s, and every table imports this module

    found = []
    for only_a, only_b in zip((a_UN & ~b_UN).sum(1), (b_UN & ~a_UN).sum(1), strict=True):
        discordant = int(only_a + only_b)
        found.append(binomtest(int(only_a), discordant).pvalue if discordant else 1.0)
    return combined_p(found)


def combined_p(values: list[float]) -> float:
    """Rüger's combination of p-values at the middle one; valid whatever their dependence."""
    middle = math.ceil(len(values) / 2)
    return float(min(1.0, sorted(values)[middle - 1] * len(values) / middle))


def compare(a_LSRN: Bits, b_LSRN: Bits, resamples: int = RESAMPLES) -> list[Difference]:
    """The paired differences of A and B, one a level.

    Args:
        a_LSRN: outcomes of A.
        b_LSRN: outcomes of B on the same seeds, students and examples.
        resamples: of the bootstrap.

    Raises:
        UsageError: the shapes differ, or an axis is empty.
    """
    if a_LSRN.shape != b_LSRN.shape:
        raise UsageError(f"paired outcomes need one shape, not {a_LSRN.shape} and {b_LSRN.shape}")
    levels, examples = len(a_LSRN), a_LSRN.shape[-1]
    drawn = Resamples(np.concatenate([a_LSRN, b_LSRN]), resamples)
    found = []
    for level, (a, b) in enumerate(zip(a_LSRN, b_LSRN, strict=True)):
        found.append(
            Difference(
                a=int(a.sum()) / a.size,
                b=int(b.sum()) / b.size,
                difference=(int(a.sum()) - int(b.sum())) / a.size,
                interval=drawn.interval(level, levels + level),
                p=mcnemar(a.reshape(-1, examples), b.reshape(-1, examples)),
            )
        )
    return found

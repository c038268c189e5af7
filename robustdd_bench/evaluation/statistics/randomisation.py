"""Is one group of students better than another by more than the luck of training?

Shape letters: L levels (clean and every eps), R students of a record, N fresh ones.

If all R + N students were trained alike, with seeds drawn independently, which of them are the
record's is a matter of labels: every choice of R among R + N was as likely (Fisher 1935; Pitman
1937). The statistic of a level is the difference of the two means, divided by the standard
deviation of all R + N values, which labels do not change. The p-value of a level is the share of
choices in which the largest statistic of *any* level is at least this level's own (Westfall and
Young 1993, single-step maxT): the probability that honest figures are refused at any level is at
most the level of the test, whatever the distribution, and however levels depend on each other.

Up to 200,000 choices all are counted, so p is exact. Beyond, 100,000 drawn ones are, together with
the one that was seen, which keeps the test valid.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from robustdd_bench.errors import UsageError

Values: TypeAlias = npt.NDArray[np.float64]
MOST = 200_000
DRAWN = 100_000
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """One level: means of both groups, and how surprising their difference is."""

    first: float
    second: float
    higher: float
    """p-value of the first group being higher; for all levels together."""
    lower: float
    """The same of its being lower."""

    @property
    def difference(self) -> float:
        """The first mean less the second."""
        return self.first - self.second


def smallest_p(first: int, second: int) -> float:
    """The smallest p-value that groups of these sizes can have."""
    return 1 / math.comb(first + second, first)


def compare_groups(first_LR: Values, second_LN: Values) -> tuple[Shift, ...]:
    """Compare two groups of students at every level.

    Args:
        first_LR: accuracies of the first group.
        second_LN: accuracies of the second one, at the same levels.

    Raises:
        UsageError: the levels differ, or a group is empty.
    """
    if first_LR.ndim != 2 or second_LN.ndim != 2 or len(first_LR) != len(second_LN) or (
        0 in first_LR.shape + second_LN.shape
    ):  # fmt: skip
        raise UsageError(
            f"two groups of students need the same levels, not {first_LR.shape} and "
            f"{second_LN.shape}"
        )
    values = np.concatenate([first_LR, second_LN], 1)
    size, total = first_LR.shape[1], values.shape[1]
    spread = values.std(1)
    scaled = (values - values.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)[:, None]
    # The difference of means is the first group's sum, times and plus a constant.
    table = scaled[:, _choices(size, total)].sum(2)
    seen = scaled[:, :size].sum(1)
    high, low = table.max(0), table.min(0)
    return tuple(
        Shift(
            first=float(first_LR[place].mean()),
            second=float(second_LN[place].mean()),
            higher=float((high >= seen[place] - _ROUNDING).mean()),
            lower=float((low <= seen[place] + _ROUNDING).mean()),
        )
        for place in range(len(values))
    )


def _choices(size: int, total: int) -> npt.NDArray[np.int64]:
    """Choices of `size` among `total`, one a row: all of them, or drawn ones after the first."""
    if math.comb(total, size) <= MOST:
        return np.array(list(itertools.combinations(range(total), size)), np.int64)
    generator = np.random.default_rng(0)
    order = generator.random((DRAWN, total)).argsort(1)[:, :size]
    return np.concatenate([np.arange(size)[None], order])

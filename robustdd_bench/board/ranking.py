"""Ranks: how many rows of a division are better than a row, as far as an interval says so.

The rank of a standing is 1 plus the number of ranked standings of its division that are separated
from it in their favour: whose paired difference to it at the headline eps has a 95 % interval (see
`robustdd_bench.evaluation.statistics.comparison`) that lies above 0. Each pair is looked at for
itself; a third row never changes it. So being level is not handed on: of three rows, a can be
level with b and b with c while a is ahead of c, and the ranks are 1, 1, 2.

- A pair with fewer than `LEAST_SEEDS` distillation seeds in common is never separated, nor is one
  that cannot be paired: nothing, or too little, is known of how far other sets would differ.
- Rows stand in the order of their mean headline accuracy. Where two have only some seeds in common,
  their paired difference may point the other way than their means.
- No correction is made for the number of pairs: k ranked rows have k (k - 1) / 2 intervals.

References, and standings that are not `ranked`, get no rank and count for no other one. Scores of
the field have no part in this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from robustdd_bench.board.divisions import in_order
from robustdd_bench.board.pairing import by_seed, common_seeds, judged_by, paired_outcomes
from robustdd_bench.board.standings import Standing, standings
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics.comparison import Interval, Resamples
from robustdd_bench.evaluation.statistics.means import mean
from robustdd_bench.evaluation.statistics.scores import (
    Scores,
    drop_rate,
    gain_over_random,
    improved_robustness_ratio,
    robustness_ratio,
)
from robustdd_bench.records.record import Record

LEAST_SEEDS = 3
"""Two standings with fewer distillation seeds in common are never separated."""
RANDOM = "random"
"""The method whose sets are the yardstick of the gain."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A standing in its division."""

    standing: Standing
    rank: int | None
    """From 1; None where it is not ranked."""
    level_with: tuple[str, ...]
    """Ids of the ranked standings of the division that are not separated from it."""
    scores: Scores

    @property
    def tied(self) -> bool:
        """Some other ranked standing is not separated from it."""
        return bool(self.level_with)


@dataclass(frozen=True, slots=True)
class Division:
    """Standings that are ranked among themselves, in order; those without a rank last."""

    name: str
    """See `robustdd_bench.board.divisions`."""
    rows: tuple[Ranked, ...]


class Duels:
    """Intervals of paired differences at the headline eps, of every pair.

    All standings that have the same seeds, students and examples are resampled at once; that is
    nearly all the cost.
    """

    def __init__(self, entrants: Sequence[Standing]) -> None:
        self.entrants = entrants
        self.drawn: dict[object, tuple[dict[int, int], Resamples]] = {}

    def interval(self, a: int, b: int) -> Interval | None:
        """Of the accuracy of standing number `a` minus that of `b`; None if they do not pair."""
        try:
            seeds = common_seeds(self.entrants[a], self.entrants[b])
        except UsageError:
            return None
        key = judged_by(self.entrants[a], seeds)
        if key not in self.drawn:
            self.drawn[key] = self._draw(seeds, key)
        columns, resamples = self.drawn[key]
        return resamples.interval(columns[a], columns[b])

    def ahead(self, a: int, b: int) -> bool:
        """Standing number `a` is separated from `b` in its favour."""
        shared = by_seed(self.entrants[a]).keys() & by_seed(self.entrants[b]).keys()
        if len(shared) < LEAST_SEEDS:
            return False
        interval = self.interval(a, b)
        return interval is not None and interval.low > 0

    def _draw(self, seeds: tuple[int, ...], key: object) -> tuple[dict[int, int], Resamples]:
        """Resample every standing that was judged alike at these seeds."""
        members = [
            index
            for index, standing in enumerate(self.entrants)
            if by_seed(standing).keys() >= set(seeds) and judged_by(standing, seeds) == key
        ]
        headline = self.entrants[members[0]].records[0].track.threat.headline
        bits = [paired_outcomes(self.entrants[i], seeds, [headline])[0] for i in members]
        return {index: column for column, index in enumerate(members)}, Resamples(np.stack(bits))


def separations(entrants: Sequence[Standing]) -> list[list[bool]]:
    """For every two standings whether the first is separated from the second in its favour."""
    duels = Duels(entrants)
    numbers = range(len(entrants))
    return [[a != b and duels.ahead(a, b) for b in numbers] for a in numbers]


def divisions(records: Iterable[Record]) -> list[Division]:
    """Records of one track as divisions: hard labels first, best headline accuracy first."""
    rows = standings(records)
    return [
        _division(name, [row for row in rows if row.division == name])
        for name in in_order(row.division for row in rows)
    ]


def _division(name: str, rows: Sequence[Standing]) -> Division:
    entrants = [row for row in rows if row.ranked]
    ahead = separations(entrants)
    # The strongest one where random selection has several configurations.
    yardstick = next((row for row in entrants if row.method == RANDOM), None)
    numbers = range(len(entrants))
    ranked = [
        Ranked(
            row,
            1 + sum(ahead[other][place] for other in numbers),
            tuple(
                entrants[other].id
                for other in numbers
                if other != place and not (ahead[other][place] or ahead[place][other])
            ),
            _scores(row, yardstick),
        )
        for place, row in enumerate(entrants)
    ]
    others = sorted((row for row in rows if not row.ranked), key=lambda row: row.reference)
    return Division(
        name, (*ranked, *(Ranked(row, None, (), _scores(row, yardstick)) for row in others))
    )


def _scores(row: Standing, yardstick: Standing | None) -> Scores:
    clean, headline = row.clean.mean, row.headline.mean
    attacked = attack_accuracies(row)
    return Scores(
        drop_rate=drop_rate(clean, headline),
        robustness_ratio=robustness_ratio(clean, attacked),
        improved_robustness_ratio=improved_robustness_ratio(clean, attacked),
        gain_clean=gain_over_random(clean, yardstick.clean.mean if yardstick else None),
        gain_headline=gain_over_random(headline, yardstick.headline.mean if yardstick else None),
    )


def attack_accuracies(row: Standing) -> list[float]:
    """Accuracy under each attack of the suite alone, at the headline eps; the mean over runs."""
    track = row.records[0].track
    return [
        mean(
            [
                item.accuracy.mean
                for record in row.records
                if record.aggregates is not None
                for item in record.aggregates.attacks
                if (item.attack, item.eps) == (attack.name, track.threat.headline)
            ]
        )
        for attack in track.attacks
    ]

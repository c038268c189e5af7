"""Ranks: standings in divisions, where what cannot be told apart shares a rank.

A division holds the sets with one kind of labels: a soft label carries more than an image's class,
so sets with soft labels never share a ranking with hard ones.

In a division standings go by mean headline accuracy. The first leads a group. Each one after it
shares the leader's rank if the 95 % interval of their paired difference at the headline eps (see
`robustdd_bench.evaluation.comparison`) contains 0, and otherwise leads a group of its own; its rank
is one more than the number of standings above it: 1, 1, 3. Two ends of the rule:

- Where two standings have only some seeds in common, the pair may point the other way than the
  means: that too sets nobody below the leader, so the rank is shared.
- Where they cannot be paired (no common seed), there is no interval that could contain 0: the mean
  decides. Otherwise a single run with an odd seed would tie with everyone.

References are ends of the scale and get no rank. Scores of the field have no part in this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robustdd_bench.board.pairing import common_seeds, paired_outcomes
from robustdd_bench.board.standings import Standing, standings
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.comparison import Interval, Resamples
from robustdd_bench.evaluation.scores import (
    Scores,
    drop_rate,
    gain_over_random,
    improved_robustness_ratio,
    robustness_ratio,
)
from robustdd_bench.evaluation.statistics import mean
from robustdd_bench.runs.records import Record

RANDOM = "random"
"""The method whose sets are the yardstick of the gain."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A standing in its division."""

    standing: Standing
    rank: int | None
    """From 1; None for a reference."""
    tied: bool
    """Another standing has the same rank."""
    scores: Scores


@dataclass(frozen=True, slots=True)
class Division:
    """The standings of one kind of labels, in order, references last."""

    name: Literal["hard", "soft"]
    rows: tuple[Ranked, ...]


class Duels:
    """Intervals of paired differences at the headline eps.

    All standings with the same common seeds are resampled at once; that is nearly all the cost.
    """

    def __init__(self, entrants: Sequence[Standing]) -> None:
        self.entrants = entrants
        self.drawn: dict[tuple[int, ...], tuple[dict[int, int], Resamples]] = {}

    def interval(self, a: int, b: int) -> Interval | None:
        """Of the accuracy of standing number `a` minus that of `b`; None if they do not pair."""
        try:
            seeds = common_seeds(self.entrants[a], self.entrants[b])
        except UsageError:
            return None
        if seeds not in self.drawn:
            self.drawn[seeds] = self._draw(seeds, a)
        columns, resamples = self.drawn[seeds]
        return resamples.interval(columns[a], columns[b])

    def _draw(self, seeds: tuple[int, ...], leader: int) -> tuple[dict[int, int], Resamples]:
        """Resample every standing that has these seeds and pairs with `leader`."""
        members = []
        for index, standing in enumerate(self.entrants):
            try:
                shared = common_seeds(self.entrants[leader], standing)
            except UsageError:
                continue
            if set(seeds) <= set(shared):
                members.append(index)
        headline = self.entrants[leader].records[0].track.threat.headline
        bits = [paired_outcomes(self.entrants[i], seeds, [headline])[0] for i in members]
        return {index: column for column, index in enumerate(members)}, Resamples(np.stack(bits))


def ranks(entrants: Sequence[Standing]) -> list[int]:
    """The rank of each standing, given best first."""
    duels = Duels(entrants)
    found: list[int] = []
    leader = 0
    for index in range(len(entrants)):
        interval = duels.interval(leader, index) if index != leader else None
        if index != leader and (interval is None or interval.low > 0):
            leader = index
        found.append(leader + 1)
    return found


def divisions(records: Iterable[Record]) -> list[Division]:
    """Records of one track as divisions: hard labels first, best headline accuracy first."""
    rows = standings(records)
    kinds: tuple[Literal["hard", "soft"], ...] = ("hard", "soft")
    names = [name for name in kinds if any(row.division == name for row in rows)]
    return [_division(name, [row for row in rows if row.division == name]) for name in names]


def _division(name: Literal["hard", "soft"], rows: Sequence[Standing]) -> Division:
    entrants = [row for row in rows if row.ranked]
    places: list[int | None] = [*ranks(entrants)]
    places += [None] * (len(rows) - len(entrants))
    # The strongest one where random selection has several configurations.
    yardstick = next((row for row in entrants if row.method == RANDOM), None)
    return Division(
        name,
        tuple(
            Ranked(
                row, place, place is not None and places.count(place) > 1, _scores(row, yardstick)
            )
            for row, place in zip(rows, places, strict=True)
        ),
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

"""Standings: one row of a board, a method with one configuration over its distillation seeds.

The seeds that count are those that the track ranks: 0, 1, 2, ..., the first `ranked_seeds`. Runs
of other seeds are shown and not counted, since whoever may choose seeds can choose lucky ones. A
run of the same seed made again (with another torch, another version, on another machine) confirms
the first one and is no further sample: see `robustdd_bench.board.confirmations`.

Two spreads are told apart and never mixed: over distillation seeds (other sets), and over students
of one set (other trainings on it).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustdd_bench.board.confirmations import first_of_each
from robustdd_bench.board.divisions import PLAIN, division_of, remark
from robustdd_bench.evaluation.statistics.means import mean, standard_deviation, wilson_interval
from robustdd_bench.protocol.tracks import Track
from robustdd_bench.records.parts import AggregateInfo
from robustdd_bench.records.record import Record


@dataclass(frozen=True, slots=True)
class Spread:
    """An accuracy in [0,1] over the runs of a standing."""

    mean: float
    """Over runs."""
    std_seeds: float | None
    """Over the runs' means (ddof 1); None for one seed."""
    std_students: float | None
    """Over the students of a run (ddof 1), the mean over runs."""
    low: float
    """Lower end of the 95 % Wilson interval over examples, at the mean."""
    high: float
    """Upper end."""


def spread(infos: Sequence[AggregateInfo]) -> Spread:
    """Summarise one accuracy of several runs, which were judged on the same examples."""
    means = [info.mean for info in infos]
    within = [info.std for info in infos if info.std is not None]
    centre = mean(means)
    low, high = wilson_interval(centre, infos[0].n_examples)
    return Spread(centre, standard_deviation(means), mean(within) if within else None, low, high)


@dataclass(frozen=True, slots=True)
class Standing:
    """The runs of one method with one configuration, by seed."""

    records: tuple[Record, ...]
    """What the figures are made of: the runs of ranked seeds, or of all where none is ranked."""
    others: tuple[Record, ...] = ()
    """Runs of seeds that the track does not rank, beside those of ranked ones."""

    @property
    def method(self) -> str:
        """The method's name."""
        return self.records[0].method.name

    @property
    def reference(self) -> bool:
        """An end of the scale rather than a distilled set."""
        return self.records[0].method.reference

    @property
    def ranked(self) -> bool:
        """Whether it takes part in the ranking: no reference, and of a ranked seed."""
        return not self.reference and is_ranked(self.records[0])

    @property
    def id(self) -> str:
        """A name for links: the method's, and a hash of what its first run was made with."""
        first = self.records[0]
        key = [*_common(first)[:2], first.method.version, first.method.config, first.device]
        key.append(division_of(first) if first.distilled else None)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return f"{self.method}-{digest[:6]}"

    @property
    def division(self) -> str:
        """What it is ranked in; see `robustdd_bench.board.divisions`."""
        return division_of(self.records[0])

    @property
    def clean(self) -> Spread:
        """Clean accuracy."""
        return spread([r.aggregates.clean for r in self.records if r.aggregates])

    @property
    def headline(self) -> Spread:
        """Accuracy at the headline eps."""
        return spread([r.aggregates.headline for r in self.records if r.aggregates])

    @property
    def robust(self) -> list[Spread]:
        """Accuracy at each eps of the ladder."""
        tables = [r.aggregates.robust for r in self.records if r.aggregates]
        return [spread([row.accuracy for row in rows]) for rows in zip(*tables, strict=True)]

    @property
    def label(self) -> str:
        """The name in a picture, where divisions have no headings."""
        marks = ["reference"] * self.reference
        marks += [remark(self.division)] * (self.division != PLAIN)
        return f"{self.method} ({', '.join(marks)})" if marks else self.method


def caption(track: Track) -> str:
    """What a table of standings shows, for its title."""
    return (
        "accuracy in %, mean ± std over seeds (of one seed: over students); "
        f"{track.threat.norm} eps, * headline"
    )


def is_ranked(record: Record) -> bool:
    """Whether the track ranks runs of this seed."""
    return record.seed < record.track.ranked_seeds


def _common(record: Record) -> list[object]:
    """What the runs of a standing have in common."""
    method = record.method
    division = division_of(record) if record.distilled else None
    return [method.name, method.plugin, method.distribution, method.config, division]


def standings(records: Iterable[Record], *, every_seed: bool = False) -> list[Standing]:
    """Records of one track as standings: best headline accuracy first, references last.

    Of several runs of one identity the first one counts. A method whose sets are of one division at
    one seed and of another at another one (hard labels, soft labels) stands twice. Ranks are made
    of these by `ranking.divisions`.

    Args:
        records: of runs with results.
        every_seed: whether seeds count that the track does not rank.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in first_of_each(records):
        groups[json.dumps(_common(record), sort_keys=True)].append(record)
    found = [_standing(group, every_seed) for group in groups.values()]
    return sorted(
        found,
        key=lambda s: (s.reference, not s.ranked, -s.headline.mean, s.method, s.records[0].run_id),
    )


def _standing(group: list[Record], every_seed: bool) -> Standing:
    group = sorted(group, key=lambda r: (r.seed, r.run_id))
    if every_seed:
        return Standing(tuple(group))
    ranked = tuple(record for record in group if is_ranked(record))
    others = tuple(record for record in group if not is_ranked(record))
    return Standing(ranked, others) if ranked else Standing(others)

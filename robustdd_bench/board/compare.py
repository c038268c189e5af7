"""Two methods of a board, compared run by run: which standings are meant, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robustdd_bench.board.divisions import PLAIN, remark
from robustdd_bench.board.pairing import by_seed, common_seeds, paired_outcomes
from robustdd_bench.board.publish import Published, current
from robustdd_bench.board.standings import Standing, standings
from robustdd_bench.board.views.captions import comparison_note
from robustdd_bench.board.views.tables import NORMS
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.evaluation.statistics.comparison import (
    CONFIDENCE,
    RESAMPLES,
    Difference,
    compare,
)
from robustdd_bench.protocol.suite import suite_note
from robustdd_bench.protocol.tracks import Track, eps_label
from robustdd_bench.text.tables import Column, Table, TableCell, TableRow, listed, percent, plain


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired differences of two standings of one track."""

    a: Standing
    b: Standing
    seeds: tuple[int, ...]
    """Distillation seeds that are paired."""
    levels: tuple[float, ...]
    """0 (clean), then the eps of the ladder."""
    differences: tuple[Difference, ...]
    """One a level, over the paired seeds."""

    @property
    def track(self) -> Track:
        """What both were judged by."""
        return self.a.records[0].track

    @property
    def left_out(self) -> dict[str, list[int]]:
        """Seeds of A and of B that the other lacks."""
        return {
            side: sorted(by_seed(standing).keys() - set(self.seeds))
            for side, standing in (("a", self.a), ("b", self.b))
        }

    def title(self, eps: str | None = None) -> str:
        """What was paired, in a line; `eps` is how eps and its norm are written."""
        lone = [
            f"{standing.method} has seed {', '.join(map(str, seeds))} alone"
            for standing, seeds in zip((self.a, self.b), self.left_out.values(), strict=True)
            if seeds
        ]
        first = self.a.records[0]
        split = "" if first.split == "test" else f", {first.split} split"
        data = first.data
        examples = data.evaluation_examples if data else 0
        return "; ".join(
            [
                f"{self.track.id}{split}: {_name(self.a)} minus {_name(self.b)} in points",
                f"paired: seed {', '.join(map(str, self.seeds))} "
                f"({self.track.students.count} students each, {examples} examples)",
                *lone,
                f"{eps or self.track.threat.norm + ' eps'}, * headline",
            ]
        )

    def note(self) -> str:
        """What the intervals are, and whether this pair can be separated in ranks."""
        return comparison_note(len(self.seeds), self.a.division == self.b.division)

    def table(self) -> Table:
        """Percent and points, one row a level."""
        names = [_name(self.a), _name(self.b)]
        if names[0] == names[1]:
            ids = [standing.records[0].run_id for standing in (self.a, self.b)]
            names = [
                f"{side}: {name} ({run_id})"
                for side, name, run_id in zip("AB", names, ids, strict=True)
            ]
        facts = {
            "track": self.track.name,
            "version": self.track.version,
            "norm": self.track.threat.norm,
            "headline_eps": self.track.threat.headline,
        }
        runs = [[record.run_id for record in side.records] for side in (self.a, self.b)]
        columns = [
            *(Column(key, None) for key in facts),
            Column("method_a", None),
            Column("method_b", None),
            Column("eps", "eps", number=False),
            Column("a", names[0]),
            Column("b", names[1]),
            Column("difference", "difference"),
            Column("interval", f"{CONFIDENCE:.0%} interval"),
            Column("p", "p (McNemar)"),
            *(Column(key, None) for key in ("seeds", "run_ids_a", "run_ids_b")),
        ]
        rows = []
        for eps, item in zip(self.levels, self.differences, strict=True):
            mark = " *" if eps == self.track.threat.headline else ""
            interval = item.interval
            cells = [
                *map(plain, facts.values()),
                plain(self.a.method),
                plain(self.b.method),
                TableCell(f"{eps_label(eps)}{mark}" if eps else "clean", {"": eps}),
                percent(item.a),
                percent(item.b),
                percent(item.difference, signed=True),
                TableCell(
                    f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}", asdict(interval)
                ),
                TableCell("< 0.001" if item.p < 0.001 else f"{item.p:.3f}", {"": item.p}),
                listed(self.seeds),
                *map(listed, runs),
            ]
            rows.append(TableRow(tuple(cells)))
        suite = suite_note(self.track.attacks, self.track.threat.headline)
        return Table(
            tuple(columns),
            tuple(rows),
            title=self.title(),
            caption=f"{self.title(NORMS[self.track.threat.norm] + ' ε')}. Accuracies in %, mean "
            f"over the paired runs; {suite}. p: McNemar's exact test of each pair of networks, "
            f"combined. {self.note()}",
            label=f"{self.track.name}-{self.a.method}-{self.b.method}",
            notes=(f"{suite[0].upper()}{suite[1:]}.", self.note()),
        )

    def content(self) -> dict[str, Any]:
        """All of it for JSON; accuracies in [0,1]."""
        return {
            "track": self.track.name,
            "version": self.track.version,
            "headline_eps": self.track.threat.headline,
            "a": _described(self.a),
            "b": _described(self.b),
            "seeds": list(self.seeds),
            "left_out": self.left_out,
            "students": self.track.students.count,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "levels": [
                {"eps": eps, **asdict(item)}
                for eps, item in zip(self.levels, self.differences, strict=True)
            ],
        }


def _name(standing: Standing) -> str:
    if standing.division == PLAIN:
        return standing.method
    return f"{standing.method} ({remark(standing.division)})"


def _described(standing: Standing) -> dict[str, Any]:
    return {
        "method": standing.method,
        "division": standing.division,
        "runs": [record.run_id for record in standing.records],
    }


def compare_standings(a: Standing, b: Standing) -> Comparison:
    """Compare two standings over the seeds they share.

    Raises:
        UsageError: they cannot be paired.
    """
    seeds = common_seeds(a, b)
    levels = (0.0, *a.records[0].track.threat.ladder)
    found = compare(paired_outcomes(a, seeds, levels), paired_outcomes(b, seeds, levels))
    return Comparison(a, b, seeds, levels, tuple(found))


def choose(
    runs: Sequence[Published], a: str, b: str, track: str | None = None
) -> tuple[Standing, Standing]:
    """The standings that two words mean: names of methods, or ids of published runs.

    A run's id stands for the standing it belongs to, of whatever version of its track; a name for
    the method on the newest version.

    Raises:
        UsageError: a word means nothing, or more than one thing; the two share no track.
    """
    names = sorted({run.record.track.name for run in runs})
    if track is not None and track not in names:
        raise unknown_name("track on this board", track, names)
    first, second = (_meant(runs, word, track) for word in (a, b))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise UsageError(
            f"{a} is on {', '.join(sorted(first))} and {b} on {', '.join(sorted(second))}: only "
            "runs of one version of one track can be compared"
        )
    if len(shared) > 1:
        raise UsageError(f"{a} and {b} meet on {', '.join(shared)}; choose with --track")
    return _only(a, first[shared[0]]), _only(b, second[shared[0]])


def _meant(runs: Sequence[Published], word: str, track: str | None) -> dict[str, list[Standing]]:
    """The standings a word may mean, by the id of their track."""
    here = [run for run in runs if track in (None, run.record.track.name)]
    for run in here:
        if run.record.run_id == word:
            peers = [r.record for r in here if r.record.track_sha256 == run.record.track_sha256]
            found = [s for s in standings(peers) if run.record in s.records]
            return {run.record.track.id: found}
    meant: dict[str, list[Standing]] = {}
    for name in sorted({run.record.track.name for run in here}):
        for standing in standings(current(here, name)):
            if standing.method == word:
                meant.setdefault(standing.records[0].track.id, []).append(standing)
    if not meant:
        where = "on this board" if track is None else f"on track {track} of this board"
        known = {run.record.method.name for run in here}
        raise unknown_name(f"method or run id {where}", word, known)
    return meant


def _only(word: str, found: list[Standing]) -> Standing:
    if len(found) > 1:
        ids = ", ".join(standing.records[0].run_id for standing in found)
        raise UsageError(
            f"{word} stands {len(found)} times on {found[0].records[0].track.id} (other settings, "
            f"labels or device); name a run of one instead: {ids}"
        )
    return found[0]

"""Which runs a call means, and how they stand together: a panel a track, an entry a method.

Runs of one method with one configuration are one entry, whatever their seeds: the board counts the
seeds that a track ranks, here every seed counts that is given. Validation runs and test runs never
share a panel.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.board.divisions import PLAIN, remark
from robustdd_bench.board.naming import Named, what_differs
from robustdd_bench.board.standings import Spread, Standing, standings
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.protocol.tracks import Track, eps_label
from robustdd_bench.records.record import Record, read_record

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PanelLine:
    """A method with one configuration: a row of a table, a line of a plot."""

    name: str
    """The method's, with what tells it from other entries of the panel."""
    standing: Standing

    @property
    def seeds(self) -> list[int]:
        """The distillation seeds of its runs, rising."""
        return sorted({record.seed for record in self.standing.records})


@dataclass(frozen=True, slots=True)
class Panel:
    """The entries of one version of one track, all judged on one split."""

    track: Track
    split: str
    levels: tuple[float, ...]
    """0 (clean) if it is shown, then the eps that are shown, rising."""
    entries: tuple[PanelLine, ...]

    @property
    def title(self) -> str:
        """The track, and the split where it is not the test split."""
        return self.track.id if self.split == "test" else f"{self.track.id}, {self.split} split"

    @property
    def examples(self) -> int:
        """How many images the students were judged on."""
        data = self.entries[0].standing.records[0].data
        return data.evaluation_examples if data else 0

    def spreads(self, entry: PanelLine) -> list[Spread]:
        """The accuracies of an entry at the panel's levels."""
        ladder = (0.0, *self.track.threat.ladder)
        found = dict(
            zip(ladder, (entry.standing.clean, *entry.standing.robust), strict=True),
        )
        return [found[level] for level in self.levels]


def read_runs(paths: Sequence[Path], note: Note) -> list[Record]:
    """The ended runs that lie at or below some paths.

    Args:
        paths: each the folder of a run, its record, or a folder with runs somewhere below it.
        note: is told of what is left out.

    Returns:
        Each run once, in the order of the paths.

    Raises:
        UsageError: a path has no run that ended, or a record cannot be read.
    """
    found: dict[tuple[str, str | None], Record] = {}
    for path in paths:
        files = _records_at(path)
        ended = [record for record in map(read_record, files) if record.aggregates is not None]
        if len(ended) < len(files):
            left = len(files) - len(ended)
            note(f"{path}: {left} failed {'run' if left == 1 else 'runs'} left out")
        if not ended:
            raise UsageError(f"no run below {path} has results")
        for record in ended:
            found.setdefault((record.run_id, record.results_sha256), record)
    return list(found.values())


def _records_at(path: Path) -> list[Path]:
    if path.name == RECORD_FILE and not path.is_dir():
        return [path]
    if not path.is_dir():
        raise UsageError(
            f"no run there: {path} is not a folder; a run is named by its folder, published "
            "methods by their names in `robustdd board compare`"
        )
    if (path / RECORD_FILE).exists():
        return [path / RECORD_FILE]
    files = sorted(path.rglob(RECORD_FILE))
    if not files:
        raise UsageError(f"no run there: {path} has no {RECORD_FILE}, nor any folder below it")
    return files


def panels(
    records: Iterable[Record],
    *,
    methods: Sequence[str] = (),
    levels: Sequence[float] | None = None,
) -> list[Panel]:
    """Group runs: a panel a track (in the order given), an entry a method and configuration.

    Args:
        records: of runs with results.
        methods: show only these, in this order; all by default, the most robust first.
        levels: show only these eps, 0 being clean accuracy; all by default.

    Raises:
        UsageError: no run is of a method, no track has an eps, or nothing is left to show.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.track_sha256, record.split].append(record)
    known = {record.method.name for group in groups.values() for record in group}
    for name in methods:
        if name not in known:
            raise unknown_name("method of these runs", name, sorted(known))
    steps = {0.0, *(step for group in groups.values() for step in group[0].track.threat.ladder)}
    for value in levels or ():
        if not _on(value, steps):
            raise UsageError(
                f"no track of these runs has eps {eps_label(value)}; they have "
                f"{', '.join(map(eps_label, sorted(steps - {0.0})))}"
            )
    found = []
    for group in groups.values():
        track = group[0].track
        entries = _entries(group, methods)
        there = (0.0, *track.threat.ladder)
        shown = tuple(step for step in there if levels is None or _on(step, levels))
        if entries and shown:
            found.append(Panel(track, group[0].split, shown, entries))
    if not found:
        raise UsageError("nothing is left to show: no track has both a method and an eps of these")
    return found


def _on(value: float, ladder: Iterable[float]) -> bool:
    return any(math.isclose(value, step, rel_tol=1e-6) for step in ladder)


def _entries(records: Sequence[Record], methods: Sequence[str]) -> tuple[PanelLine, ...]:
    every = standings(records, every_seed=True)
    names = labels(every)
    entries = [PanelLine(name, standing) for name, standing in zip(names, every, strict=True)]
    if not methods:
        return tuple(entries)
    return tuple(e for name in methods for e in entries if e.standing.method == name)


def labels(every: Sequence[Standing]) -> list[str]:
    """A name for each standing of one track: its method, and what tells it from its namesakes.

    That is the division where it is not the plain one, the plugin where plugins differ, the preset
    where presets differ, and the settings in which runs of one preset differ. Where all these are
    the same, it is the id of the first run.
    """
    namesakes: dict[str, list[Standing]] = defaultdict(list)
    for standing in every:
        namesakes[standing.method].append(standing)
    found = [_label(standing, namesakes[standing.method]) for standing in every]
    return [
        name if found.count(name) == 1 else f"{name} [{standing.records[0].run_id}]"
        for name, standing in zip(found, every, strict=True)
    ]


def _label(standing: Standing, namesakes: Sequence[Standing]) -> str:
    first = standing.records[0]
    told = []
    if standing.reference:
        told.append("reference")
    if standing.division != PLAIN:
        told.append(remark(standing.division))
    if len({one.records[0].method.plugin for one in namesakes}) > 1:
        told.append(f"plugin {first.method.plugin}")
    told += what_differs(_named(standing), [_named(one) for one in namesakes])
    return f"{standing.method} ({', '.join(told)})" if told else standing.method


def _named(standing: Standing) -> Named:
    method = standing.records[0].method
    return Named("", standing.method, method.preset, method.config, standing.id)

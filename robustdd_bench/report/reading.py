"""What a run's folder holds for its report, whether the run ended, failed or goes on.

A folder may come from a stranger: texts are bounded, pictures are PNG of a bounded size, links are
not followed, and nothing is read as code.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustdd_bench.drawing.rendering import png_size
from robustdd_bench.errors import UsageError
from robustdd_bench.executors import RECEIPT, STAGES, read_receipt
from robustdd_bench.filenames import LOG_FILE, METRICS_FILE, RECORD_FILE, SET_PICTURE
from robustdd_bench.files import require_regular
from robustdd_bench.records.plan import Plan
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.report.series import Metrics, read_metrics
from robustdd_bench.runs.inventory import read_plan
from robustdd_bench.runs.progress.snapshots import snapshots
from robustdd_bench.strict import read_bounded

MAX_PICTURE = 4 * 2**20
LOG_LINES, LOG_BYTES = 30, 16 * 2**10


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG of a run."""

    name: str
    """In file names, e.g. "step-00000012"."""
    caption: str
    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run, as far as it came."""

    folder: Path
    plan: Plan
    status: Literal["complete", "failed", "unfinished"]
    record: Record | None
    """None of a run that has not ended."""
    metrics: Metrics
    pictures: tuple[Picture, ...]
    """Snapshots by step."""
    final: Picture | None
    """The distilled set."""
    log: tuple[str, ...]
    """The last lines of `run.log`; empty for a run that ended well."""
    changed: tuple[str, ...]
    """Settings that the call named, as `key=value`."""
    done: tuple[tuple[str, int], ...]
    """Stages and how many of their cells are done, of a run without results."""

    @property
    def command(self) -> str:
        """The call that repeats the run."""
        return self.plan.command() if self.record is None else self.record.command_to_repeat

    @property
    def label(self) -> str:
        """Method and seed."""
        marks = [f"seed {self.plan.seed}"]
        if self.plan.split == "validation":
            marks.append("validation")
        return f"{self.plan.method}, {', '.join(marks)}"


def read_run(folder: Path) -> RunReport:
    """Read a run.

    Args:
        folder: its folder, published or not.

    Raises:
        UsageError: no run is there, or its record or plan is damaged.
    """
    folder = folder.parent if folder.name == RECORD_FILE else folder
    if not folder.is_dir():
        raise UsageError(f"no run there: {folder} is not a folder")
    record, plan = _record(folder), read_plan(folder)
    if record is not None:
        plan = record.plan()
    if plan is None:
        raise UsageError(f"no run there: {folder} has neither record.json nor plan.json")
    shown = [
        _picture(one.path, f"step-{one.step:08d}", f"after {one.step:,} steps")
        for one in snapshots(folder)
    ]
    complete = record is not None and record.status == "complete"
    return RunReport(
        folder=folder,
        plan=plan,
        status="unfinished" if record is None else record.status,
        record=record,
        metrics=read_metrics(folder / METRICS_FILE),
        pictures=tuple(picture for picture in shown if picture is not None),
        final=_picture(folder / SET_PICTURE, "set", "the set") if complete else None,
        log=() if complete else _log(folder / LOG_FILE),
        changed=_changed(plan, record),
        done=() if complete else _done(folder),
    )


def _record(folder: Path) -> Record | None:
    path = folder / RECORD_FILE
    return read_record(path) if path.exists() else None


def _changed(plan: Plan, record: Record | None) -> tuple[str, ...]:
    """What follows --preset and --set in the call."""
    words = shlex.split(plan.command() if record is None else record.command_to_repeat)
    pairs = list(itertools.pairwise(words))
    presets = [f"preset {value}" for word, value in pairs if word == "--preset"]
    return (*presets, *(value for word, value in pairs if word == "--set"))


def _picture(path: Path, name: str, caption: str) -> Picture | None:
    """The picture in a file, or None if it is missing, too large or no PNG."""
    try:
        if path.is_symlink():
            return None
        data = read_bounded(path, "a picture", MAX_PICTURE)
    except UsageError:
        return None
    size = png_size(data)
    if size is None or not 0 < min(size) <= max(size) <= 20_000:
        return None
    return Picture(name, caption, data, *size)


def _done(folder: Path) -> tuple[tuple[str, int], ...]:
    """Cells with a receipt, by stage; those of experts lie in the store."""
    receipts = [read_receipt(path) for path in sorted(folder.rglob(f"*{RECEIPT}"))]
    counts = Counter(found.cell.partition("/")[0] for found in receipts if found is not None)
    return tuple((stage, counts[stage]) for stage in STAGES if counts[stage])


def _log(path: Path) -> tuple[str, ...]:
    """The last lines of a log."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_BYTES))
            text = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except (OSError, UsageError):
        return ()
    return tuple(line.rstrip()[:400] for line in text.splitlines()[-LOG_LINES:])


@dataclass(frozen=True, slots=True)
class TrackGroup:
    """Runs of one protocol, which can be compared."""

    runs: tuple[tuple[int, RunReport], ...]
    """Each with its number in the report, from 1."""

    @property
    def results(self) -> list[tuple[str, Record]]:
        """Label and record of the runs that have results."""
        return [
            (f"{number}: {run.label}", run.record)
            for number, run in self.runs
            if run.record is not None and run.record.aggregates is not None
        ]

    def different_settings(self) -> list[tuple[str, list[Any]]]:
        """Settings that two of the runs share and give different values, with each run's value.

        A later setting that a run leaves out, and another run of the same method does not, has the
        value there that it had before it could be set: "as before".
        """
        plans = [run.plan for _, run in self.runs]
        keys = dict.fromkeys(key for plan in plans for key in plan.config)
        found = []
        for key in keys:
            having = {plan.method for plan in plans if key in plan.config}
            values = [
                plan.config.get(key, "as before" if plan.method in having else "–")
                for plan in plans
            ]
            told = [
                value for value, plan in zip(values, plans, strict=True) if plan.method in having
            ]
            if any(value != told[0] for value in told):
                found.append((key, values))
        return found


def by_track(runs: Sequence[RunReport]) -> list[TrackGroup]:
    """The runs by protocol and split, in their order."""
    groups: dict[tuple[str, str], list[tuple[int, RunReport]]] = {}
    for number, run in enumerate(runs, start=1):
        key = (run.plan.track.sha256(), run.plan.split)
        groups.setdefault(key, []).append((number, run))
    return [TrackGroup(tuple(found)) for found in groups.values()]

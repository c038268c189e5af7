"""What the functions of the Python entrance take and give: options, runs, records.

See `robustdd_bench.api`; docs/python.md shows them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from robustdd_bench.board.standings import is_ranked
from robustdd_bench.board.views.tables import run_table
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.filenames import SET_FILE
from robustdd_bench.records.means import DATA_VARIABLE, OUT_VARIABLE
from robustdd_bench.records.parts import Aggregates
from robustdd_bench.records.record import Record
from robustdd_bench.text.tables import Table, markdown_table

if TYPE_CHECKING:
    import pandas

DEFAULT_TRACK = "digits-ipc10"
OUT, DATA = (os.environ.get(OUT_VARIABLE) or "runs", os.environ.get(DATA_VARIABLE) or "data")


class Options(TypedDict, total=False):
    """With what a run is carried out, and where its files are; those of `robustdd run`."""

    device: str
    """"auto" (the default), "cpu", "cuda" or "cuda:1"."""
    jobs: int | str
    """Cells computed at once, in processes; by default "auto": as many as cores or GPUs. Results do
    not depend on it."""
    threads: int
    """CPU threads, 1 by default; 0: torch's choice."""
    compile: str
    """Compiled kernels: "auto" (the default), "on" or "off"."""
    validate: bool
    """Judge on a split of the training data, for tuning; not by default."""
    out: str | Path
    """Folder of runs and of what they share, "runs" by default."""
    data_root: str | Path
    """Folder of the datasets, "data" by default."""
    download: bool
    """Whether a missing dataset may be downloaded; not by default."""
    witnesses: bool
    """Keep adversarial examples; not by default."""
    fresh: bool
    """Forget what this run has computed; not by default."""
    time_limit: float
    """Seconds after which nothing more is begun and what is computed is interrupted; the call then
    raises `TimeLimitError`, and the same call resumes. None by default."""
    quiet: bool
    """Show no progress; it is shown on stderr by default."""


MEANS: tuple[Literal["device", "threads", "compile"], ...] = ("device", "threads", "compile")
PLANNED = (*MEANS, "validate")


def planned(options: Options) -> dict[str, Any]:
    """Those of the options that a plan holds."""
    given = {name: value for name, value in options.items() if name in PLANNED}
    return {"compile": "auto"} | given


def check(options: Options) -> None:
    """Refuse an option that there is not.

    Raises:
        UsageError: there is one.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise unknown_name("option", name, Options.__annotations__)


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A run that has ended: its record and its files."""

    record: Record
    folder: Path
    """Where its files are."""
    reused: bool = False
    """Whether it had been made before, and nothing was computed."""

    @property
    def clean(self) -> float:
        """Accuracy without an attack, the mean over students."""
        return _aggregates(self.record).clean.mean

    @property
    def robust(self) -> dict[float, float]:
        """Eps to accuracy in the worst case over the attacks, the mean over students."""
        return {row.eps: row.accuracy.mean for row in _aggregates(self.record).robust}

    @property
    def table(self) -> Table:
        """The table that the command prints."""
        return run_table(self.record)

    def summary(self) -> dict[str, Any]:
        """What `robustdd run --json` prints: JSON values."""
        return summary(self.record)

    def set(self) -> DistilledSet:
        """The distilled set.

        Raises:
            UsageError: its file is not there.
        """
        return DistilledSet.load(self.folder / SET_FILE)

    def __str__(self) -> str:
        return markdown_table(self.table)

    def __repr__(self) -> str:
        record = self.record
        what = f"{record.method.name} on {record.track.id}, seed {record.seed}, {record.status}"
        return f"Run({what}: {str(self.folder)!r})"

    def _repr_markdown_(self) -> str:
        return str(self)


def _aggregates(record: Record) -> Aggregates:
    if record.aggregates is None:
        reason = "" if record.failure is None else f": {record.failure.reason}"
        raise UsageError(f"run {record.run_id} has no results{reason}")
    return record.aggregates


def summary(record: Record) -> dict[str, Any]:
    """The figures of a run, as JSON values."""
    aggregates = record.aggregates
    return {
        "run_id": record.run_id,
        "status": record.status,
        "method": record.method.name,
        "track": record.track.id,
        "split": record.split,
        "seed": record.seed,
        "publishable": record.publishable,
        "failed_checks": sorted({flag.name for flag in record.flags if not flag.passed}),
        "overlap": None if record.overlap is None else record.overlap.model_dump(mode="json"),
        "failure": None if record.failure is None else record.failure.reason,
        "clean": None if aggregates is None else aggregates.clean.model_dump(mode="json"),
        "robust": []
        if aggregates is None
        else [
            {"eps": item.eps, **item.accuracy.model_dump(mode="json")} for item in aggregates.robust
        ],
        "stages": [stage.model_dump(mode="json") for stage in record.costs.stages],
        "command": record.command_to_repeat,
    }


@dataclass(frozen=True, slots=True, repr=False)
class Records(Sequence[Run]):
    """Published runs."""

    runs: tuple[Run, ...]

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Run | Records:
        return Records(self.runs[index]) if isinstance(index, slice) else self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        return f"Records({len(self.runs)} runs)"

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def where(
        self, *, track: str | None = None, method: str | None = None, seed: int | None = None
    ) -> Records:
        """Those of a track (with or without its version), a method, a seed."""
        return Records(
            tuple(
                run
                for run in self.runs
                if track in (None, run.record.track.name, run.record.track.id)
                and method in (None, run.record.method.name)
                and seed in (None, run.record.seed)
            )
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run and eps; eps 0 is clean accuracy. Accuracies are shares."""
        return [row for run in self.runs for row in _rows(run.record)]

    def to_pandas(self) -> pandas.DataFrame:
        """`rows` as a data frame.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError(
                "to_pandas needs pandas: pip install pandas; rows() does without"
            ) from error
        return pandas.DataFrame(self.rows())


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    found = _aggregates(record)
    about = {
        "track": record.track.name,
        "version": record.track.version,
        "method": record.method.name,
        "preset": record.method.preset,
        "seed": record.seed,
        "run_id": record.run_id,
        "ranked": is_ranked(record),
        "images": record.distilled.images if record.distilled else None,
        "norm": record.track.threat.norm,
    }
    for eps, accuracy in [(0.0, found.clean), *((r.eps, r.accuracy) for r in found.robust)]:
        figures = accuracy.model_dump(exclude={"values", "mean"})
        headline = eps == record.track.threat.headline
        yield {**about, "eps": eps, "headline": headline, "accuracy": accuracy.mean, **figures}

"""Executors: where the cells of a stage run.

The pipeline hands over one stage after the other; the cells of a stage are independent. An
executor runs each of them, here (`job.run_here`) or in another process: it ships `job.message()`
and the cell's name, and the worker, which sees the same folders, calls `run_remote` of
`robustdd_bench.runs.work` with them. The pipeline holds the run's lock and writes the record;
workers do neither.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.records.plan import Plan
from robustdd_bench.runs.cells import Cell


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What an executor gets beside the cells."""

    plan: Plan
    out: Path
    """The folder under which runs and the shared store live."""
    data_root: Path
    witnesses: bool
    """Whether adversarial examples are kept."""
    run_here: Callable[[Cell], None]
    """Runs a cell in this process; raises what the cell raises."""
    finished: Callable[[Cell], None]
    """To be called in this process for each cell that is done, for the display."""

    def message(self) -> dict[str, Any]:
        """JSON values that tell a worker which run this is and where its folders are."""
        return {
            "plan": self.plan.to_dict(),
            "out": str(self.out.resolve()),
            "data_root": str(self.data_root.resolve()),
            "witnesses": self.witnesses,
        }


class Executor(abc.ABC):
    """Runs cells that do not depend on one another."""

    @abc.abstractmethod
    def run(self, cells: Sequence[Cell], job: Job) -> None:
        """Return when every cell is done; raise the first failure."""


class LocalExecutor(Executor):
    """One cell after the other, in this process."""

    def run(self, cells: Sequence[Cell], job: Job) -> None:
        """Run the cells in order."""
        for cell in cells:
            job.run_here(cell)
            job.finished(cell)

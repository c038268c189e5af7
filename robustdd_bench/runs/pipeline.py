"""Executing a plan: its cells, each skipped where its result is there, and the record they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.executors import Cell, Executor, ExecutorEndedError, Receipt
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.loading import write_data
from robustdd_bench.records.plan import Plan
from robustdd_bench.records.record import Record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.failures import failure_of
from robustdd_bench.runs.execution.graph import CellGraph
from robustdd_bench.runs.execution.limits import LimitReached, TimeLimit, TimeLimitError
from robustdd_bench.runs.execution.scheduler import ActiveRun, Scheduler
from robustdd_bench.runs.planned import (
    AGAIN,
    Finished,
    PlannedRun,
    ReporterFactory,
    RunLockedError,
    Surroundings,
    message_of,
)
from robustdd_bench.runs.progress.reporter import RunReporter
from robustdd_bench.runs.shared import SharedData
from robustdd_bench.runs.work import run_cell

__all__ = ["Finished", "ReporterFactory", "RunLockedError", "compute_cells", "execute"]


def execute(
    plan: Plan,
    registry: Registry,
    executor: Executor,
    *,
    out: Path,
    data_root: Path,
    reporter: ReporterFactory,
    download: bool = False,
    fresh: bool = False,
    witnesses: bool = False,
    source: tuple[Path, Record] | None = None,
    limit: TimeLimit | None = None,
) -> Finished:
    """Run a plan, or what is left of it.

    Args:
        plan: what to run.
        registry: see `Surroundings`, as what follows.
        executor: where cells are computed.
        out: see `Surroundings`.
        data_root: see `Surroundings`.
        reporter: see `Surroundings`.
        download: see `Surroundings`.
        fresh: see `Surroundings`.
        witnesses: see `Surroundings`.
        source: folder and record of a run whose distilled set is reused; see `plan_again`.
        limit: when to stop.

    Raises:
        UsageError: the call cannot work.
        RunLockedError: another process is running the same plan.
        RunFailedError, PluginError: the run failed; a failed record has been written.
        ExecutorEndedError: the executor computes nothing any more; the run resumes.
        TimeLimitError: the time is up; the text says what is left.
        KeyboardInterrupt: interrupted; the text says what is kept and how to go on.
    """
    around = Surroundings(
        registry=registry,
        out=out,
        data_root=data_root,
        reporter=reporter,
        download=download,
        fresh=fresh,
        witnesses=witnesses,
    )
    run = PlannedRun(plan, around, SharedData(), source)
    if run.open():
        try:
            Scheduler(executor, limit).drive([run])
        except (KeyboardInterrupt, ExecutorEndedError):
            return run.result()  # raises it, with what is kept
        except LimitReached as reached:
            left = ", ".join(f"{stage} {count}" for stage, count in run.graph.left().items())
            parts = ["the time limit is reached", f"left: {left or 'all'}", str(reached), run.kept]
            raise TimeLimitError(f"{'; '.join(filter(None, parts))}. {AGAIN}") from reached
        finally:
            run.close()
    return run.result()


def compute_cells(
    context: RunContext, executor: Executor, progress: RunReporter, cells: Sequence[Cell]
) -> None:
    """Compute those cells of a run that are not done, and write no record.

    Raises:
        RobustDDError: one failed.
        KeyboardInterrupt: interrupted; the text names the cell.
    """
    part = _Part(context, progress, cells)
    try:
        Scheduler(executor).drive([part])
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"interrupted in {part.where}") from interrupt
    if part.error is not None:
        raise part.error


class _Part(ActiveRun):
    """Some cells of a run."""

    def __init__(self, context: RunContext, progress: RunReporter, cells: Sequence[Cell]) -> None:
        self._context, self.progress = context, progress
        self.run_id = context.plan.run_id()
        self.kin, self.threads, self.seconds = self.run_id, context.plan.threads, {}
        self.graph = CellGraph(cells, progress)
        self.error: Exception | None = None
        self.where = "set-up"

    def prepare(self, *, remote: bool, timed: bool) -> None:
        self.message = message_of(self._context)

    def compute(self, cell: Cell) -> Receipt:
        return run_cell(self._context, cell, self.progress)

    def write_data(self, path: Path) -> None:
        write_data(path, self._context.whole_data())

    def end(self, error: BaseException | None, stage: str, cell: str) -> None:
        self.where = cell
        if isinstance(error, ExecutorEndedError):
            return  # nothing else of the call can be computed either
        if isinstance(error, Exception):
            self.error = failure_of(error, cell)

"""A run from plan to record: its folder, its cells, and the record that they make.

A run may be killed at any moment. Every cell's output is whole or absent, methods checkpoint their
loops, and nothing in the result depends on where the run was cut: started again, it ends in the
record that an unbroken run writes, costs apart.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import save_distilled, save_robustness
from robustdd_bench.errors import RobustDDError, RunFailedError, UsageError
from robustdd_bench.executors import Cell, ExecutorEndedError, Receipt, receipts_hold
from robustdd_bench.filenames import (
    LOCK_FILE,
    PLAN_FILE,
    RECORD_FILE,
    ROBUSTNESS_PICTURE,
    SET_FILE,
    SET_PICTURE,
    WITNESSES_FILE,
    WORK_FOLDER,
)
from robustdd_bench.files import file_lock, read_json, shown, write_json
from robustdd_bench.guard import logged
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.loading import write_data
from robustdd_bench.records.environment import process
from robustdd_bench.records.plan import Plan
from robustdd_bench.records.record import Record, read_record, write_record
from robustdd_bench.runs.assemble import assemble, failed, save_witnesses
from robustdd_bench.runs.cells import all_cells, cell_of_reused, cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.failures import failure_of
from robustdd_bench.runs.execution.graph import CellGraph
from robustdd_bench.runs.execution.limits import LimitReached
from robustdd_bench.runs.execution.scheduler import ActiveRun, log_of
from robustdd_bench.runs.folder import delete_torn, forget
from robustdd_bench.runs.operations import seconds_of_cells
from robustdd_bench.runs.progress.reporter import NullReporter, RunReporter
from robustdd_bench.runs.reuse import reuse_set
from robustdd_bench.runs.shared import SharedData
from robustdd_bench.runs.work import run_cell, threads

KEPT = (RECORD_FILE, SET_FILE, SET_PICTURE, ROBUSTNESS_PICTURE)
AGAIN = "Repeat the command to resume."


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that ended: its record, its folder, and whether it had been there already."""

    record: Record
    folder: Path
    reused: bool


class RunLockedError(UsageError):
    """Another process is running the same plan into the same folder."""


ReporterFactory = Callable[[Path], contextlib.AbstractContextManager[RunReporter]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Where runs are executed, and what they leave."""

    registry: Registry
    """The installed plugins."""
    out: Path
    """The folder under which runs and the shared store live."""
    data_root: Path
    """Where datasets are looked for."""
    reporter: ReporterFactory
    """Makes the reporter for a run's folder."""
    download: bool = False
    """Whether a missing dataset may be downloaded."""
    fresh: bool = False
    """Forget what a run has computed (stored experts, shared by runs, are kept)."""
    witnesses: bool = False
    """Keep an adversarial example of each student and example that fell."""


class PlannedRun(ActiveRun):
    """A plan that is executed.

    Args:
        plan: what to run.
        around: where.
        shared: data and layers of other runs of this call.
        source: folder and record of a run whose distilled set is reused; see `plan_again`.
        ended: called when the run has ended and its folder is free.
    """

    def __init__(
        self,
        plan: Plan,
        around: Surroundings,
        shared: SharedData,
        source: tuple[Path, Record] | None = None,
        ended: Callable[[PlannedRun], object] = lambda run: None,
    ) -> None:
        self._ended = ended
        self.plan, self._around, self._shared, self._source = plan, around, shared, source
        self.run_id = plan.run_id()
        self.kin = f"{plan.method} {dict(plan.config)} {plan.track.id} {plan.split}"
        self.threads = plan.threads
        self.seconds = {}
        self.progress = NullReporter()
        self.graph = CellGraph((), self.progress)
        self._said = plan.folder(around.out)  # as the caller named it
        self._lock = contextlib.ExitStack()
        self._told = contextlib.ExitStack()
        self._result: Finished | BaseException | None = None
        self.kept = ""
        """Of a run that was interrupted: what is kept."""

    def open(self) -> bool:
        """Take the run's folder.

        Returns:
            Whether there is something to do; the result of a run that ended before is there.

        Raises:
            UsageError: the folder cannot be used.
            RunLockedError: another process is running the same plan.
        """
        around, plan = self._around, self.plan
        out = around.out.absolute()
        folder = plan.folder(out)
        process(plan.device)  # the code that runs is that of now, whatever is committed meanwhile
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(folder))
            if around.fresh:
                forget(folder)
            delete_torn(folder)
            self._context = RunContext(
                plan,
                around.registry,
                out,
                around.data_root,
                download=around.download,
                witnesses=around.witnesses,
                shared=self._shared,
            )
            with threads(plan.threads):
                finished = _existing(self._context)
            if finished is not None:
                self._result = Finished(finished.record, self._said, reused=True)
                return False
            # Those of results that are not the ones to come.
            (folder / WITNESSES_FILE).unlink(missing_ok=True)
            self._started = _started(folder, plan)
            self._lock = stack.pop_all()
        return True

    def prepare(self, *, remote: bool, timed: bool) -> None:
        """Make data, networks, method and cells."""
        context = self._context
        self.progress = self._told.enter_context(self._around.reporter(context.folder))
        with logged(log_of(self.progress)), threads(self.threads):
            self._told.enter_context(self.progress.run(**_about(self.plan)))
            context.prepare()
            if context.missing_kernels is not None:
                self.progress.note(context.missing_kernels)
            if self._source is not None:
                _reuse(context, *self._source)
            self.graph = CellGraph(all_cells(context), self.progress, self._times)
            if timed:
                self.seconds = self._times()
        self.message = message_of(context)
        if remote:
            context.let_go()

    def _times(self) -> Mapping[tuple[str, str | None], float]:
        with threads(self.threads):
            return self.seconds or seconds_of_cells(self.plan, self._around.registry)

    def close(self) -> None:
        """Let the folder go, of a run that may not have begun."""
        self._lock.close()

    def compute(self, cell: Cell) -> Receipt:
        """Compute a cell in this process."""
        return run_cell(self._context, cell, self.progress)

    def write_data(self, path: Path) -> None:
        """Write the data into a file; see `Job.write_data`."""
        write_data(path, self._context.whole_data())

    def end(self, error: BaseException | None, stage: str, cell: str) -> None:
        """Write the record; tell how it ended; let the folder go."""
        try:
            self._end(error, stage, cell)
        finally:
            self._ended(self)

    def _end(self, error: BaseException | None, stage: str, cell: str) -> None:
        with self._lock:
            try:
                with self._told, logged(log_of(self.progress)), threads(self.threads):
                    record = self._record(error, stage, cell)
            except BaseException as ended:
                self._result = ended
                if error is None and not isinstance(ended, Exception):
                    raise
                return
            shutil.rmtree(self._context.folder / WORK_FOLDER, ignore_errors=True)
        self._result = Finished(record, self._said, reused=False)

    def _record(self, error: BaseException | None, stage: str, cell: str) -> Record:
        context = self._context
        path = context.folder / RECORD_FILE
        try:
            if error is not None:
                raise error
            record = assemble(context, self.graph.cells, self._started)
            _save_figures(context, record)
            if context.witnesses:
                save_witnesses(context, record)
        except (KeyboardInterrupt, LimitReached) as interrupt:
            self.kept = self._what_is_kept()
            raise KeyboardInterrupt(f"interrupted; {self.kept}. {AGAIN}") from interrupt
        except ExecutorEndedError as ended:
            self.kept = self._what_is_kept()
            raise ended.with_more(f"{self.kept}. {AGAIN}") from ended
        except UsageError:
            raise
        except BaseException as ended:
            failure = failure_of(ended, cell)
            record = failed(context, self.graph.cells, self._started, stage, cell, failure)
            # On a full disk the record cannot be written either; the first reason is told.
            with contextlib.suppress(RunFailedError):
                write_record(path, record)
            if failure is ended:
                raise
            raise failure from ended
        write_record(path, record)
        return record

    def _what_is_kept(self) -> str:
        parts = []
        for stage in dict.fromkeys(cell.stage for cell in self.graph.cells):
            cells = [cell for cell in self.graph.cells if cell.stage == stage]
            done = sum(cell.done() for cell in cells)
            if done:
                parts.append(f"{stage} {done}/{len(cells)}")
            work = self._context.folder / WORK_FOLDER
            if (
                stage == "distill"
                and not done
                and stage in self.graph.begun
                and work.is_dir()
                and any(work.iterdir())
            ):
                parts.append("a checkpoint of the distillation")
        return f"kept in {shown(self._context.folder)}: {', '.join(parts) or 'nothing yet'}"

    def result(self) -> Finished:
        """What came of it.

        Raises:
            BaseException: what it ended with.
        """
        assert self._result is not None
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


def message_of(context: RunContext) -> dict[str, Any]:
    """What a worker has to be told of a run; see `Job.message`."""
    return {
        "plan": context.plan.to_dict(),
        "out": str(context.out),
        "data_root": str(context.data_root),
        "witnesses": context.witnesses,
        "data": list(context.data_hashes),
        "kernels": context.compile,
        "limits": context.limits,
        "fingerprint": context.shared.fingerprint(context.registry),
    }


def _about(plan: Plan) -> dict[str, Any]:
    """Which run it is, for loggers."""
    return {
        "run_id": plan.run_id(),
        "method": plan.method,
        "track": plan.track.name,
        "track_version": plan.track.version,
        "seed": plan.seed,
        "split": plan.split,
        "config": dict(plan.config),
        "command": plan.command(),
    }


def _reuse(context: RunContext, run: Path, record: Record) -> None:
    """Take over a set, unless this run has made its own already."""
    if any(cell.done() for cell in cells_of(context, "distill")):
        return
    if record.data is not None and context.data_hashes[0] != record.data.train_sha256:
        raise UsageError(f"the set of {run} was made of other data than those at hand")
    reuse_set(context.folder, run, record, cell_of_reused(context))


def _save_figures(context: RunContext, record: Record) -> None:
    plan = context.plan
    assert record.aggregates is not None
    save_distilled(context.folder / SET_PICTURE, context.distilled(), context.num_classes)
    save_robustness(
        context.folder / ROBUSTNESS_PICTURE,
        record.aggregates,
        plan.track,
        f"{plan.method} on {plan.track.name} ({plan.split} split, seed {plan.seed})",
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets it go when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {shown(folder)}: {error.strerror or error}; see --out"
        ) from error
    try:
        held = file_lock(folder / LOCK_FILE, 0)
    except OSError as error:
        raise UsageError(
            f"cannot write into {shown(folder)}: {error.strerror or error}; see --out"
        ) from error
    if held is None:
        raise RunLockedError(
            f"another process is running into {shown(folder)}; wait for it, or choose another --out"
        )
    try:
        yield
    finally:
        held.release()


def _existing(context: RunContext) -> Finished | None:
    """The run, if it ended before, its files are whole and the data are the same.

    Where the data are not at hand any more, the record stands.
    """
    folder, plan = context.folder, context.plan
    path = folder / RECORD_FILE
    if not path.exists():
        return None
    try:
        record = read_record(path)
        if record.status != "complete" or record.run_id != plan.run_id():
            return None
        assert record.data is not None
        assert record.distilled is not None
        kept = (*KEPT, WITNESSES_FILE) if context.witnesses else KEPT
        if not all((folder / name).is_file() for name in kept) or not receipts_hold(folder):
            return None
        if DistilledSet.load(context.set_path).sha256() != record.distilled.sha256:
            return None
    except UsageError:
        return None
    with contextlib.suppress(RobustDDError):
        if context.data_hashes != (record.data.train_sha256, record.data.evaluation_sha256):
            return None
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    return Finished(record, folder, reused=True)


def _started(folder: Path, plan: Plan) -> datetime.datetime:
    """Write the plan on the first start; tell when that was."""
    path = folder / PLAN_FILE
    if path.exists():
        with contextlib.suppress(UsageError, KeyError, TypeError, ValueError):
            return datetime.datetime.fromisoformat(read_json(path)["started"])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    write_json(path, {"plan": plan.to_dict(), "started": now.isoformat()})
    return now

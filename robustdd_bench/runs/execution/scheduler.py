"""Cells of several runs on one executor: order, failures, retries and interruptions.

Everything happens in the thread that calls `drive`. Events and ends of cells come from the
executor's threads into one inbox, in the order in which they happened.
"""

from __future__ import annotations

import abc
import contextlib
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RobustDDError, RunFailedError
from robustdd_bench.executors import (
    Cell,
    CellFailedError,
    Executor,
    ExecutorEndedError,
    Job,
    Receipt,
    ReturnedCellError,
)
from robustdd_bench.guard import blame_stranger, logged, plain_text, plugin_of, told
from robustdd_bench.runs.execution.failures import failure_of
from robustdd_bench.runs.execution.graph import CellGraph
from robustdd_bench.runs.execution.limits import LimitReached, TimeLimit, Times
from robustdd_bench.runs.progress.reporter import RunReporter
from robustdd_bench.runs.work import threads
from robustdd_bench.text.terminal import duration_text, still

RETRIES = 2
"""How often a cell is computed again whose worker was lost."""
RETURNS = 100
"""How often a cell is computed again that was given back."""
LOOK_S = 0.5
"""Seconds between two looks at the limit of time while cells are computed."""


class ActiveRun(abc.ABC):
    """A run whose cells are to be computed."""

    run_id: str
    kin: str
    """What it has in common with runs whose cells cost the same."""
    threads: int
    progress: RunReporter
    graph: CellGraph
    message: Mapping[str, Any]
    seconds: Mapping[tuple[str, str | None], float]
    """What cells take by their operations, of stage and attack, for one student."""

    @abc.abstractmethod
    def prepare(self, *, remote: bool, timed: bool) -> None:
        """Make everything above.

        Args:
            remote: cells are computed in other processes.
            timed: there is a limit of time: `seconds` are asked for.

        Raises:
            Exception: it fails, and `end` is called with it.
        """

    @abc.abstractmethod
    def compute(self, cell: Cell) -> Receipt:
        """Compute a cell in this process."""

    @abc.abstractmethod
    def write_data(self, path: Path) -> None:
        """Write the data into a file; see `Job.write_data`."""

    @abc.abstractmethod
    def end(self, error: BaseException | None, stage: str, cell: str) -> None:
        """All cells are done, or the run has failed or was interrupted. It raises nothing.

        Args:
            error: what ended it; None: its cells are done.
            stage: where it was raised.
            cell: where it was raised.
        """


@dataclass(frozen=True, slots=True)
class _Submitted:
    run: ActiveRun
    cell: Cell


class Scheduler:
    """Drives runs.

    Args:
        executor: where cells are computed.
        limit: when to stop.
    """

    def __init__(self, executor: Executor, limit: TimeLimit | None = None) -> None:
        self._executor = executor
        self._limit = limit
        self._owner = plugin_of(executor)
        self._what = f"executor {type(executor).__name__!r}"
        self._inside = False
        self._open: list[ActiveRun] = []
        self._computing: dict[Future[Receipt], _Submitted] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._failures: dict[str, tuple[BaseException, Cell]] = {}
        self._lost: dict[tuple[str, str, bool], int] = {}
        self._times = Times()
        self._held: Cell | None = None
        self._stopping = False

    def drive(self, runs: Iterable[ActiveRun]) -> None:
        """Compute the cells of runs; each is ended when its cells are done, or when it has failed.

        Args:
            runs: one is taken when the executor has nothing else to do.

        Raises:
            KeyboardInterrupt, LimitReached, ExecutorEndedError: the runs that had begun were ended
                with it.
        """
        try:
            with self._entered():
                self._loop(iter(runs))
        except BaseException as error:
            self._stopping = True
            with contextlib.suppress(Exception):  # what cells told before they were stopped
                self._hear_all()
            for run in self._open:
                cell = next(iter(run.graph.computing.values()), None)
                run.graph.close(error)
                run.end(error, cell.stage if cell else "", cell.name if cell else "")
            raise

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        """The executor is left in the end, if it was entered."""
        try:
            yield
        except BaseException as error:
            if self._inside:
                asks = self._executor.asks and isinstance(error, KeyboardInterrupt)
                with (
                    still() if asks else contextlib.nullcontext(),
                    blame_stranger(self._owner, self._what),
                ):
                    self._executor.__exit__(type(error), error, error.__traceback__)
            raise
        if self._inside:
            with blame_stranger(self._owner, self._what):
                self._executor.__exit__(None, None, None)

    def _loop(self, runs: Iterator[ActiveRun]) -> None:
        more = True
        while True:
            while len(self._computing) < self._executor.slots and not self._over():
                if self._submit_one():
                    continue
                run = next(runs, None) if more and self._held is None else None
                if run is None:
                    more = more and self._held is not None
                    break
                self._begin(run)
            if self._computing:
                self._hear()
            elif self._held is not None or self._over():
                raise LimitReached(_told_next(self._held))
            elif not more:
                assert not self._open, "cells wait for one another"
                return

    def _over(self) -> bool:
        return self._limit is not None and self._limit.left_s() <= 0

    def _begin(self, run: ActiveRun) -> None:
        try:
            if not self._inside:
                with blame_stranger(self._owner, self._what):
                    self._executor.__enter__()
                self._inside = True
            run.prepare(remote=self._executor.slots > 1, timed=self._limit is not None)
            with logged(log_of(run.progress)), blame_stranger(self._owner, self._what):
                self._executor.begin(self._job(run))
            self._hear_all()
        except BaseException as error:
            run.end(error, "set-up", "set-up")
            if not isinstance(error, Exception) or isinstance(error, ExecutorEndedError):
                raise
            return
        self._times.count(run.kin, run.seconds)
        self._open.append(run)
        self._end_if_over(run)

    def _submit_one(self) -> bool:
        """Submit the first cell that may be; earlier runs go first."""
        outputs = {one.cell.output for one in self._computing.values()}
        self._held = None
        for run in list(self._open):
            if run.run_id in self._failures:
                continue
            for cell in run.graph.ready():
                if cell.output in outputs:  # an expert that another run trains at the moment
                    continue
                expected = self._times.of(run.kin, cell)
                if self._limit is not None and not self._limit.allows(expected):
                    self._held = self._held or expected
                    continue
                self._submit(run, cell, expected)
                return True
            self._end_if_over(run)
        return False

    def _job(self, run: ActiveRun) -> Job:
        return Job(
            run_id=run.run_id,
            message=run.message,
            events=lambda cell, event: self._inbox.put(lambda: self._heard(run, cell, event)),
            run_here=lambda cell: self._compute(run, cell),
            write_data=run.write_data,
        )

    def _submit(self, run: ActiveRun, cell: Cell, expected: Cell) -> None:
        try:
            run.graph.begins(cell)
            with logged(log_of(run.progress)), blame_stranger(self._owner, self._what):
                future = self._executor.submit(expected, self._job(run))
        except ExecutorEndedError:
            raise
        except Exception as error:
            self._fail(run, cell, error)
            return
        self._computing[future] = _Submitted(run, cell)
        future.add_done_callback(lambda done: self._inbox.put(lambda: self._ended(done)))

    def _heard(self, run: ActiveRun, cell: Cell, event: Mapping[str, Any]) -> None:
        """A cell has told something; a disk that is full ends its run and no other."""
        try:
            run.progress.take(cell.name, event)
        except RobustDDError as error:
            self._failures.setdefault(run.run_id, (error, cell))

    def _compute(self, run: ActiveRun, cell: Cell) -> Receipt:
        """Compute a cell in this process."""
        limit = self._limit
        run.progress.pulse = None if limit is None else limit.pulse
        with (
            contextlib.nullcontext() if limit is None else limit.interrupting(),
            threads(run.threads),
            logged(log_of(run.progress)),
            run.progress.cell(cell.stage, cell.name),
        ):
            try:
                return run.compute(cell)
            except Exception as error:
                failure = failure_of(error, cell.name)
                if failure is error:
                    raise
                raise failure from error

    def _hear(self) -> None:
        """Wait for something to happen.

        Raises:
            LimitReached: the time is up.
        """
        while not self._over():  # also where events never cease
            try:
                event = self._inbox.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            event()
            return
        raise LimitReached("")

    def _hear_all(self) -> None:
        """Take what has happened, and wait for nothing."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()

    def _ended(self, future: Future[Receipt]) -> None:
        """A cell has ended, one way or another."""
        one = self._computing.pop(future)
        run, cell = one.run, one.cell
        try:
            future.result()
        except ExecutorEndedError:
            if not self._stopping:
                raise
        except (RobustDDError, CellFailedError, MemoryError) as error:
            self._fail(run, cell, error)
        except (Exception, CancelledError) as error:
            if not self._stopping:
                self._is_lost(run, cell, error)
        else:
            receipt = cell.receipt()
            if receipt is not None:
                self._times.add(run.kin, cell, receipt)
                run.graph.finished(cell)
            else:
                undone = f"the executor left cells undone: {cell.name}"
                self._fail(run, cell, RunFailedError(undone))
        self._end_if_over(run)

    def _is_lost(self, run: ActiveRun, cell: Cell, error: BaseException) -> None:
        returned = isinstance(error, ReturnedCellError)
        key = (run.run_id, cell.name, returned)
        count = self._lost[key] = self._lost.get(key, 0) + 1
        run.progress.lost(cell.name)
        what = "it was given back" if returned else "its worker was lost"
        why = plain_text(error) if returned else told(error)
        if count > (RETURNS if returned else RETRIES):
            self._fail(run, cell, RunFailedError(f"{cell.name}: {what} {count} times: {why}"))
            return
        log_of(run.progress)(f"{cell.name}: {what}, it is computed again: {why}")
        run.graph.again(cell)

    def _fail(self, run: ActiveRun, cell: Cell, error: BaseException) -> None:
        """The run has failed; what else of it is computed at the moment goes on to its end."""
        run.graph.failed(cell)
        self._failures.setdefault(run.run_id, (error, cell))
        self._end_if_over(run)

    def _end_if_over(self, run: ActiveRun) -> None:
        """End a run that is done, or that has failed and of which nothing is computed."""
        if self._stopping or run not in self._open or run.graph.computing:
            return
        failure = self._failures.pop(run.run_id, None)
        if failure is not None:
            self._open.remove(run)
            error, cell = failure
            run.graph.close(error)
            run.end(error, cell.stage, cell.name)
        elif run.graph.complete:
            self._open.remove(run)
            run.end(None, "record", "record")


def _told_next(cell: Cell | None) -> str:
    """What could not be begun, where that is known."""
    if cell is None or cell.resources.seconds is None:
        return ""
    return (
        f"{cell.name} takes about {duration_text(cell.resources.seconds)}, there is no time for it"
    )


def log_of(progress: RunReporter) -> Callable[[str], None]:
    """Says something in a run's log; a full disk shows elsewhere."""

    def log(text: str) -> None:
        with contextlib.suppress(RunFailedError):
            progress.note(text)

    return log

"""A sweep: many runs, whose cells go to one executor.

What exists is not done again, what was interrupted resumes, and a run that fails does not stop the
rest. Several processes may run the same sweep into the same folder: each leaves the runs that
another one is at, and looks at them again in the end.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.executors import Executor, ExecutorEndedError
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.plugins import Registry
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.runs.cleaning import is_locked, recorded_status
from robustdd_bench.runs.execution.limits import LimitReached, TimeLimit
from robustdd_bench.runs.execution.scheduler import Scheduler
from robustdd_bench.runs.planned import AGAIN, PlannedRun, RunLockedError, Surroundings
from robustdd_bench.runs.progress.reporter import NullReporter, RunReporter
from robustdd_bench.runs.shared import SharedData
from robustdd_bench.sweeps.plan import Sweep, SweepRun

POLL_S = 2.0

Status = Literal["waiting", "running", "busy", "left", "failed", "done", "done before"]
ENDED: tuple[Status, ...] = ("failed", "done", "done before")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a run of a sweep has come."""

    run: SweepRun
    folder: Path
    status: Status = "waiting"
    """"done before": it had ended; "busy": another process is at it; "left": time was up."""
    record: Record | None = None
    """Of a run that is done, now or before."""
    reason: str = ""
    """Why it failed."""

    @property
    def wall_s(self) -> float | None:
        """Seconds that its stages took; None without a record.

        Those before an interruption count, and the training of experts that were stored already.
        """
        record = self.record
        return None if record is None else sum(stage.wall_s for stage in record.costs.stages)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The outcomes of a sweep, in the order of its runs."""

    sweep: Sweep
    outcomes: tuple[Outcome, ...]
    note: str = ""
    """What the limit of time has left, in one line."""

    def having(self, *statuses: Status) -> list[Outcome]:
        """The outcomes with one of these statuses."""
        return [outcome for outcome in self.outcomes if outcome.status in statuses]


class SweepDisplay(abc.ABC):
    """Shows a sweep while it goes on."""

    @abc.abstractmethod
    def opened(self) -> contextlib.AbstractContextManager[object]:
        """Show the sweep from its begin to its end; the rest is called within."""

    @abc.abstractmethod
    def show(self, index: int, outcome: Outcome) -> None:
        """Show that a run begins, has ended, or is left to another process."""

    @abc.abstractmethod
    def waiting(self, count: int) -> None:
        """Show that only so many runs of other processes are left."""

    @abc.abstractmethod
    def reporter(self, folder: Path) -> RunReporter:
        """A reporter for the run in that folder."""


class NoSweepDisplay(SweepDisplay):
    """Shows nothing."""

    def opened(self) -> contextlib.AbstractContextManager[object]:
        """Show nothing."""
        return contextlib.nullcontext()

    def show(self, index: int, outcome: Outcome) -> None:
        """Show nothing."""

    def waiting(self, count: int) -> None:
        """Show nothing."""

    def reporter(self, folder: Path) -> RunReporter:
        """A reporter that writes the run's files."""
        return NullReporter(folder)


def run_sweep(
    sweep: Sweep,
    registry: Registry,
    executor: Executor,
    *,
    out: Path,
    data_root: Path,
    display: SweepDisplay | None = None,
    download: bool = False,
    witnesses: bool = False,
    retry_failed: bool = False,
    wait: bool = True,
    pause: Callable[[float], object] = time.sleep,
    limit: TimeLimit | None = None,
) -> SweepResult:
    """Run what is left of a sweep.

    Args:
        sweep: what to run.
        registry: the installed plugins.
        executor: where the cells of all runs are computed.
        out: the folder under which runs and the shared store live.
        data_root: where datasets are looked for.
        display: where progress is shown; None shows nothing.
        download: whether a missing dataset may be downloaded.
        witnesses: keep an adversarial example of each student and example that fell.
        retry_failed: run again what failed before this call; else it counts as failed.
        wait: wait for runs that other processes are at; else they are left "busy".
        pause: waits so many seconds between two looks at them.
        limit: when to stop.

    Returns:
        An outcome for each run. One that failed has the status "failed" and a reason; only an
        interruption and errors of this program end the sweep.

    Raises:
        KeyboardInterrupt: interrupted; the text says what is done and how to go on.
        ExecutorEndedError: the executor computes nothing any more; the text says as much.
    """
    shown = NoSweepDisplay() if display is None else display
    around = Surroundings(
        registry=registry,
        out=out,
        data_root=data_root.absolute(),
        reporter=shown.reporter,
        download=download,
        witnesses=witnesses,
    )
    state = _State(sweep, around, shown, retry_failed)
    try:
        with shown.opened():
            while state.left:
                before = list(state.left)
                Scheduler(executor, limit).drive(state.runs())
                if state.left == before:
                    if not wait or (limit is not None and limit.left_s() <= 0):
                        break
                    shown.waiting(len(before))
                    pause(POLL_S)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_interrupted(state.outcomes, state.kept())) from interrupt
    except ExecutorEndedError as ended:
        raise ended.with_more(_interrupted(state.outcomes, state.kept())) from ended
    except LimitReached as reached:
        note = state.stop(str(reached))
        return SweepResult(sweep, tuple(state.outcomes), note)
    return SweepResult(sweep, tuple(state.outcomes))


class _State:
    """How far a sweep has come in this process.

    Args:
        sweep: what to run.
        around: where.
        display: shows it.
        retry_failed: run again what failed before this call.
    """

    def __init__(
        self, sweep: Sweep, around: Surroundings, display: SweepDisplay, retry_failed: bool
    ) -> None:
        self._around, self._display, self._shared = around, display, SharedData()
        self.outcomes = [Outcome(run, run.plan.folder(around.out)) for run in sweep.runs]
        out = around.out.absolute()
        self._places = [run.plan.folder(out) for run in sweep.runs]
        self._failed_before = [
            _failure(run, place) if retry_failed else None
            for run, place in zip(sweep.runs, self._places, strict=True)
        ]
        self.left = list(range(len(sweep.runs)))
        """Runs that have not ended, by number."""
        self._begun: dict[int, PlannedRun] = {}

    def runs(self) -> Iterator[PlannedRun]:
        """Runs that are to be executed, each opened when it is asked for."""
        for index in list(self.left):
            run = self._opened(index)
            if run is not None:
                yield run

    def _opened(self, index: int) -> PlannedRun | None:
        """Open a run; None where that is its outcome already."""
        planned, place = self.outcomes[index].run, self._places[index]
        if is_locked(place, unsure=False):  # if so, the run says why it cannot lock
            self._becomes(index, "busy")
            return None
        failure = _failure(planned, place)
        # What failed since this call began is another process's answer, and is not asked again.
        if failure is not None and failure != self._failed_before[index]:
            self._becomes(index, "failed", reason=failure[1])
            return None
        self._becomes(index, "running")
        run = PlannedRun(
            planned.plan, self._around, self._shared, ended=lambda run: self._ended(index)
        )
        self._begun[index] = run
        try:
            if run.open():
                return run
        except RunLockedError:
            self._becomes(index, "busy")
            return None
        except (RobustDDError, OSError) as error:
            self._becomes(index, "failed", reason=str(error) or type(error).__name__)
            return None
        self._ended(index)
        return None

    def _becomes(self, index: int, status: Status, **fields: Any) -> None:
        """Remember and show what a run is now."""
        before = self.outcomes[index]
        self.outcomes[index] = Outcome(before.run, before.folder, status, **fields)
        if status in ENDED:
            self.left.remove(index)
        if status != before.status:
            self._display.show(index, self.outcomes[index])

    def _ended(self, index: int) -> None:
        """A run has a result, or was interrupted."""
        try:
            finished = self._begun[index].result()
        except ExecutorEndedError:  # it goes on in another call
            return
        except (RobustDDError, OSError) as error:
            self._becomes(index, "failed", reason=str(error) or type(error).__name__)
        except BaseException:  # it goes on in another call
            return
        else:
            self._becomes(
                index, "done before" if finished.reused else "done", record=finished.record
            )

    def kept(self) -> list[str]:
        """What runs keep that were interrupted."""
        return [run.kept for run in self._begun.values() if run.kept]

    def stop(self, why: str) -> str:
        """Leave what has not ended; say what that is."""
        for index in self.left:
            self._becomes(index, "left")
        done, total = len(self.outcomes) - len(self.left), len(self.outcomes)
        counts = f"{done} of {total} runs have ended, {len(self.left)} are left"
        parts = ["the time limit is reached", counts, why, *self.kept()]
        return f"{'; '.join(filter(None, parts))}. {AGAIN}"


def _failure(run: SweepRun, folder: Path) -> tuple[int, str] | None:
    """When a run's record was written and why the run failed, if that is what it says."""
    path = folder / RECORD_FILE
    if recorded_status(folder) == "failed":
        with contextlib.suppress(UsageError, OSError):
            written, record = path.stat().st_mtime_ns, read_record(path)
            if record.failure is not None and record.run_id == run.run_id:
                return written, record.failure.reason
    return None


def _interrupted(outcomes: Sequence[Outcome], kept: Sequence[str]) -> str:
    """What an interrupted sweep has done, and how to go on."""
    done = sum(outcome.status in ("done", "done before") for outcome in outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    counts = f"{done} of {len(outcomes)} runs are done" + (f", {failed} failed" if failed else "")
    return "; ".join([counts, "interrupted", *kept]) + f". {AGAIN}"

"""A sweep: many runs, one after another, each through `robustdd_bench.runs.pipeline.execute`.

What exists is not done again, what was interrupted goes on, and a run that fails does not stop the
rest. Several processes may run the same sweep into the same folder: each leaves the runs that
another one is at, and looks at them again in the end.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.plugins import Registry
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.runs.cleaning import is_locked, recorded_status
from robustdd_bench.runs.executors import Executor
from robustdd_bench.runs.pipeline import RunLockedError, execute
from robustdd_bench.runs.progress.reporter import NullReporter, RunReporter
from robustdd_bench.sweeps.plan import Sweep, SweepRun

POLL_S = 2.0

Status = Literal["waiting", "running", "elsewhere", "failed", "done", "there"]
ENDED: tuple[Status, ...] = ("failed", "done", "there")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a run of a sweep has come."""

    run: SweepRun
    folder: Path
    status: Status = "waiting"
    """"there": it had ended before; "elsewhere": another process is at it."""
    record: Record | None = None
    """Of a run that is done or there."""
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
) -> SweepResult:
    """Run what is left of a sweep.

    Args:
        sweep: what to run.
        registry: the installed plugins.
        executor: where the cells of each run are executed.
        out: the folder under which runs and the shared store live.
        data_root: where datasets are looked for.
        display: where progress is shown; None shows nothing.
        download: whether a missing dataset may be downloaded.
        witnesses: keep an adversarial example of each student and example that fell.
        retry_failed: run again what failed before this call; else it counts as failed.
        wait: wait for runs that other processes are at; else they are left "elsewhere".
        pause: waits so many seconds between two looks at them.

    Returns:
        An outcome for each run. One that failed has the status "failed" and a reason; only an
        interruption and errors of this program end the sweep.

    Raises:
        KeyboardInterrupt: interrupted; the text says what is done and how to go on.
    """
    outcomes = [Outcome(run, run.plan.folder(out)) for run in sweep.runs]
    places = [run.plan.folder(out.absolute()) for run in sweep.runs]
    out, data_root = out.absolute(), data_root.absolute()
    failed_before = [
        _failure(run, place) if retry_failed else None
        for run, place in zip(sweep.runs, places, strict=True)
    ]
    shown = NoSweepDisplay() if display is None else display

    def run_one(index: int) -> Outcome:
        run, folder = outcomes[index].run, outcomes[index].folder
        if is_locked(places[index], unsure=False):  # if so, the run says why it cannot lock
            return Outcome(run, folder, "elsewhere")
        failure = _failure(run, places[index])
        # What failed since this call began is another process's answer, and is not asked again.
        if failure is not None and failure != failed_before[index]:
            return Outcome(run, folder, "failed", reason=failure[1])
        outcomes[index] = Outcome(run, folder, "running")
        shown.show(index, outcomes[index])
        try:
            finished = execute(
                run.plan,
                registry,
                executor,
                out=out,
                data_root=data_root,
                reporter=shown.reporter,
                download=download,
                witnesses=witnesses,
            )
        except RunLockedError:
            return Outcome(run, folder, "elsewhere")
        except (RobustDDError, OSError) as error:
            return Outcome(run, folder, "failed", reason=str(error) or type(error).__name__)
        return Outcome(run, folder, "there" if finished.reused else "done", finished.record)

    left = list(range(len(outcomes)))
    try:
        with shown.opened():
            while left:
                for index in left:
                    outcome = run_one(index)
                    if outcome.status != outcomes[index].status:
                        shown.show(index, outcome)
                    outcomes[index] = outcome
                again = [index for index in left if outcomes[index].status == "elsewhere"]
                if again == left:
                    if not wait:
                        break
                    shown.waiting(len(again))
                    pause(POLL_S)
                left = again
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_interrupted(outcomes, str(interrupt))) from interrupt
    return SweepResult(sweep, tuple(outcomes))


def _failure(run: SweepRun, folder: Path) -> tuple[int, str] | None:
    """When a run's record was written and why the run failed, if that is what it says."""
    path = folder / RECORD_FILE
    if recorded_status(folder) == "failed":
        with contextlib.suppress(UsageError, OSError):
            written, record = path.stat().st_mtime_ns, read_record(path)
            if record.failure is not None and record.run_id == run.run_id:
                return written, record.failure.reason
    return None


def _interrupted(outcomes: Sequence[Outcome], text: str) -> str:
    """What an interrupted sweep has done, and how to go on."""
    done = sum(outcome.status in ("done", "there") for outcome in outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    counts = f"{done} of {len(outcomes)} runs are done" + (f", {failed} failed" if failed else "")
    return f"{counts}; {text or 'interrupted. Run the same command again to go on.'}"

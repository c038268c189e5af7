"""The checks of an executor, on runs of digits that take seconds."""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustdd_bench.config import build_config
from robustdd_bench.conformance import process_watch, surroundings
from robustdd_bench.conformance.configurations import (
    config_of,
    load_class,
    owner_of,
    refuses_nonsense,
)
from robustdd_bench.conformance.executor_events import check_events
from robustdd_bench.conformance.executor_runs import (
    BESIDE,
    DIVERGES,
    GOOD,
    INTERRUPTED,
    REFUSED,
    Runs,
    WatchedExecutor,
)
from robustdd_bench.conformance.findings import FailedCheckError, Finding, run_checks
from robustdd_bench.errors import PluginWarning, RobustDDError
from robustdd_bench.executors import CellFailedError, Executor
from robustdd_bench.guard import blame, told
from robustdd_bench.plugins import Entry, collect, get_plugin_manager
from robustdd_bench.sweeps.run import Outcome

LEAVE_S = 15.0
"""Seconds in which an executor that is left with an exception has stopped what runs."""
GRACE_S = 10.0
"""Seconds in which its processes and threads have ended."""
TRIES = 3
"""How often a process is killed that seems to compute the cell."""
REFUSAL = "the worker is not installed as the process that planned the run"


def check_executor(
    entry: Entry, settings: Mapping[str, Any] | None = None, only: Collection[str] = ()
) -> list[Finding]:
    """Run the checks against a registered executor.

    Workers have to see the folder for temporary files (`TMPDIR`).

    Args:
        entry: the executor.
        settings: options in place of its defaults, as `--executor-set` gives them.
        only: names of checks; empty: all.
    """
    with (
        tempfile.TemporaryDirectory(prefix="robustdd-check-") as folder,
        surroundings.one_thread(),
        process_watch.marked() as mark,
    ):
        bench = _Bench(entry, settings or {}, Path(folder), mark)
        checks = {
            "class": bench.check_class,
            "config": bench.check_config,
            "nonsense": bench.check_nonsense,
            "slots": bench.check_slots,
            "run": bench.check_run,
            "events": bench.check_events,
            "receipts": bench.check_receipts,
            "failure": bench.check_failure,
            "refusal": bench.check_refusal,
            "leaving": bench.check_leaving,
            "again": bench.check_again,
            "lost": bench.check_lost,
            "leftovers": bench.check_leftovers,
            "import": lambda: surroundings.check_import(entry.plugin),
        }
        try:
            # Its calls are guarded one by one: an interruption of the checks is a real Ctrl-C.
            return run_checks({n: c for n, c in checks.items() if not only or n in only})
        finally:
            process_watch.kill(process_watch.started(mark) - bench.before)


@dataclass
class _Session:
    """The executor from entering it to leaving it, and what it left."""

    executor: WatchedExecutor
    left: list[str]
    outcomes: tuple[Outcome, ...] = ()
    leave_s: float | None = None
    """Seconds from an interruption to its end."""
    moved: Sequence[str] = ()
    """Working files that were written after the interruption."""
    killed: Sequence[int] = ()


class _Bench:
    """One entry on the bench; every method that begins with `check_` is a check."""

    def __init__(self, entry: Entry, settings: Mapping[str, Any], folder: Path, mark: str) -> None:
        self._entry, self._settings, self._mark = entry, settings, mark
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PluginWarning)
            # What workers find: no plugin that is known to this process alone.
            registry = collect(get_plugin_manager())
        self._runs = Runs(folder, registry)
        self.before = process_watch.started(mark)
        self._threads = set(threading.enumerate())

    @cached_property
    def _class(self) -> type[Any]:
        return load_class(self._entry, Executor)

    def _config(self) -> Any:
        config = config_of(self._class, self._entry)
        if not self._settings:
            return config
        return build_config(self._class.Config, self._settings, owner_of(self._entry))

    def _make(self) -> Executor:
        with blame(self._entry.plugin, owner_of(self._entry)):
            executor = self._class(self._config())
        assert isinstance(executor, Executor)
        return executor

    def _left(self) -> list[str]:
        return process_watch.left(self._mark, self.before, self._threads, GRACE_S)

    def _watched(self, inner: Executor, refused: str = "") -> WatchedExecutor:
        return WatchedExecutor(inner, self._entry.plugin, refused)

    @cached_property
    def _several(self) -> _Session | Exception:
        """Four runs at once: a good one, one that diverges, another, one that is refused."""
        try:
            executor = self._watched(self._make(), self._runs.runs[REFUSED].run_id)
            outcomes = self._runs.together(executor, "several", REFUSED + 1)
            return _Session(executor, self._left(), outcomes)
        except Exception as error:
            return error

    @cached_property
    def _interrupted(self) -> tuple[Executor, _Session] | Exception:
        """A long distillation, interrupted in its middle."""
        runs = self._runs
        try:
            inner = self._make()
            executor = self._watched(inner)
            try:
                runs.long(executor, "long", runs.press)
            except KeyboardInterrupt:
                if runs.pressed_s is None:  # the user's own
                    raise
                leave_s = time.monotonic() - runs.pressed_s
                moved = runs.moved(INTERRUPTED, "long", 1.0)
                return inner, _Session(executor, self._left(), leave_s=leave_s, moved=moved)
            return inner, _Session(executor, self._left())
        except Exception as error:
            return error

    @cached_property
    def _resumed(self) -> _Session | Exception:
        """The same executor, entered again; the process that goes on with the cell is killed."""
        first = self._interrupted
        if isinstance(first, Exception):
            return first
        executor, killed = self._watched(first[0]), list[int]()

        def kill() -> None:
            lost = len([one for one in executor.submissions if one.cell.name == "distill"]) > 1
            if executor.here or lost or len(killed) == TRIES:
                return
            found = process_watch.busiest(self._mark)
            if found is not None:
                process_watch.kill({found})
                killed.append(found)

        try:
            self._runs.long(executor, "long", kill)
            return _Session(executor, self._left(), killed=killed)
        except Exception as error:
            return error

    def check_class(self) -> str:
        return f"{self._class.__name__} is a complete Executor"

    def check_config(self) -> str:
        self._config()
        given = ", ".join(f"{key}={value}" for key, value in self._settings.items())
        return f"a frozen dataclass with defaults; checked with {given or 'the defaults'}"

    def check_nonsense(self) -> str:
        return refuses_nonsense(self._class.Config, self._entry)

    def check_slots(self) -> str:
        slots = self._make().slots
        if type(slots) is not int or slots < 1:
            raise FailedCheckError(f"slots must be an int of at least 1, not {slots!r}")
        return f"{slots} cells at once"

    def check_run(self) -> str:
        session = _whole(self._several)
        for place in (GOOD, BESIDE):
            differs = self._runs.difference(place, "several")
            if differs:
                raise FailedCheckError(f"{_named(session.outcomes[place])}: {differs}")
        count = len(session.executor.submissions)
        return (
            f"{count} cells in {session.executor.slots} slots: record, files, values and log are "
            "those of local"
        )

    def check_events(self) -> str:
        session = _whole(self._several)
        executor, count = session.executor, 0
        for place in (GOOD, BESIDE):
            rows = self._runs.rows(place)
            for one in executor.of(session.outcomes[place].run.run_id):
                check_events(one, rows)
                count += len(one.events)
        if not count and not executor.here:
            raise FailedCheckError("no event of any cell arrived: hand them to job.events")
        if not count:
            return "cells are computed in this process, which tells by itself"
        return f"{count} events, in order, of the right cells, before their ends"

    def check_receipts(self) -> str:
        session = _whole(self._several)
        count = 0
        for place in (GOOD, BESIDE):
            for one in session.executor.of(session.outcomes[place].run.run_id):
                if one.future is None or one.future.exception() is not None:
                    continue
                if one.receipt is None:
                    raise FailedCheckError(f"{one.cell.name}: its future is done, the cell is not")
                if one.future.result() != one.receipt:
                    raise FailedCheckError(
                        f"{one.cell.name}: the future holds another receipt than lies beside the "
                        "output"
                    )
                count += 1
        return f"{count} futures hold the receipts that lie beside the outputs"

    def check_failure(self) -> str:
        session = _whole(self._several)
        outcome, expected = session.outcomes[DIVERGES], self._runs.local[DIVERGES]
        if outcome.status != "failed" or outcome.reason != expected.reason:
            raise FailedCheckError(
                f"a cell that diverges must be told as {expected.reason!r}, not as "
                f"{outcome.reason or outcome.status!r}"
            )
        tries = session.executor.of(outcome.run.run_id)
        for one in tries:
            assert one.future is not None
            if not isinstance(one.future.exception(), (CellFailedError, RobustDDError)):
                raise FailedCheckError(
                    f"{one.cell.name}: its future must have a CellFailedError or RobustDDError"
                )
        if len(tries) > 1 or any(one.opened() > 1 for one in tries):
            raise FailedCheckError(
                f"{tries[0].cell.name} failed and was computed again: a failure comes again"
            )
        return f"told once, as on local; other runs end well: {_line(outcome.reason)}"

    def check_refusal(self) -> str:
        session = _whole(self._several)
        outcome = session.outcomes[REFUSED]
        if session.executor.here and outcome.status == "done":
            return "cells are computed in this process, which planned them"
        if outcome.status != "failed" or REFUSAL not in outcome.reason:
            raise FailedCheckError(
                "a worker of another torch than the one that planned must refuse; the run is "
                f"{outcome.status}: {outcome.reason or 'hand on job.message as it is'}"
            )
        return "workers that are installed otherwise refuse"

    def check_leaving(self) -> str:
        _, session = _both(self._interrupted)
        if session.leave_s is None:
            raise FailedCheckError("not checked: a cell of seconds told no progress in its middle")
        if session.executor.exit_error is not None:
            raise FailedCheckError(f"__exit__ raised {told(session.executor.exit_error)}")
        if session.leave_s > LEAVE_S:
            raise FailedCheckError(
                f"left with an exception it took {session.leave_s:.0f} s, more than {LEAVE_S:g}"
            )
        if session.moved:
            raise FailedCheckError(f"left, its cell goes on: {session.moved[0]} is written")
        return f"interrupted in the middle of a cell, it ended in {session.leave_s:.1f} s"

    def check_again(self) -> str:
        _both(self._interrupted)
        _whole(self._resumed)
        differs = self._runs.difference(INTERRUPTED, "long", told=False)
        if differs:
            raise FailedCheckError(f"entered again, the interrupted run: {differs}")
        return "entered again, the interrupted run resumes to the record of local"

    def check_lost(self) -> str:
        session = _whole(self._resumed)
        if session.executor.here:
            return "not checked: cells are computed in this process"
        if not process_watch.can_watch():
            return "not checked: this system does not tell of processes"
        tries = [one for one in session.executor.submissions if one.cell.name == "distill"]
        if any(one.opened() > 1 for one in tries):
            raise FailedCheckError(
                "a cell whose process was killed was computed again by the executor: raise what "
                "is no RobustDDError, retries are the pipeline's"
            )
        if not session.killed:
            return "not checked: no process that was started from this one computed the cell"
        if len(tries) < 2:
            return f"not checked: process {session.killed[0]} was killed, the cell ended well"
        assert tries[0].future is not None
        error = tries[0].future.exception()
        return f"its process was killed, the cell computed again: {_line(error)}"

    def check_leftovers(self) -> str:
        sessions = [self._several, self._resumed]
        if not isinstance(self._interrupted, Exception):
            sessions.insert(1, self._interrupted[1])
        for session in sessions:
            if isinstance(session, _Session) and session.left:
                raise FailedCheckError(f"left, it leaves {', '.join(session.left[:3])}")
        _whole(self._several)
        return "its processes and threads have ended"


def _whole(session: _Session | Exception) -> _Session:
    if isinstance(session, Exception):
        if isinstance(session, FailedCheckError):
            raise session
        raise FailedCheckError(f"the runs did not end: {told(session)}") from session
    return session


def _both(found: tuple[Executor, _Session] | Exception) -> tuple[Executor, _Session]:
    if isinstance(found, Exception):
        _whole(found)
    assert not isinstance(found, Exception)
    return found


def _named(outcome: Outcome) -> str:
    return f"{outcome.run.plan.method} with {outcome.run.plan.track.name}"


def _line(what: object) -> str:
    return told(what) if isinstance(what, Exception) else " ".join(str(what).split())

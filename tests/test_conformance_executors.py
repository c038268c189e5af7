"""The checks of executors: good ones pass all of them, each bad one fails what it should."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest

from robustdd_bench.conformance import check_executor, executor_runs, executors
from robustdd_bench.conformance.executor_runs import Runs
from robustdd_bench.errors import RobustDDError
from robustdd_bench.executors import CellFailedError, Executor
from robustdd_bench.plugins import Entry, collect, get_plugin_manager
from robustdd_bench.runs.execution.failures import failure_of
from robustdd_bench.runs.execution.fingerprint import fingerprint
from robustdd_bench.runs.execution.worker import Worker
from robustdd_bench.runs.progress import events


@cache
def registry():
    return collect(get_plugin_manager())


@cache
def here():
    return fingerprint(registry())


SHORT = 7


@pytest.fixture(scope="module")
def shortened():
    """No distillation takes seconds, and each of its steps is told."""
    with pytest.MonkeyPatch.context() as patch:
        long = f"iterations = {executor_runs.LONG}"
        assert long in executor_runs.SWEEP
        sweep = executor_runs.SWEEP.replace(long, f"iterations = {SHORT}")
        patch.setattr(executor_runs, "SWEEP", sweep)
        patch.setattr(executor_runs, "LONG", SHORT)
        patch.setattr(events, "ADVANCE_S", 0.0)
        yield


@pytest.fixture(scope="module")
def reference(shortened, tmp_path_factory):
    """The runs of `LocalExecutor`, made once for all tests."""
    runs = Runs(tmp_path_factory.mktemp("reference"), registry())
    outcomes, folder = runs.local, runs._folder / "local"

    def local(self):
        shutil.copytree(folder, self._folder / "local", dirs_exist_ok=True)
        return outcomes

    return property(local)


@pytest.fixture
def made_once(reference, monkeypatch):
    monkeypatch.setattr(Runs, "local", reference)


def entry_of(plugged, name="mine"):
    return Entry("executors", name, f"{__name__}:{plugged.__qualname__}", "", "me")


def check(plugged, *only, settings=None):
    findings = check_executor(entry_of(plugged), settings, only)
    for finding in findings:
        assert finding.detail
        assert "\n" not in finding.detail
    return {finding.check: finding.detail for finding in findings if not finding.passed}


class Inline(Executor):
    """A good executor: a worker in this process, which tells by events alone."""

    slots = 2

    def __init__(self, config=None):
        super().__init__(config)
        self.workers = {}

    def submit(self, cell, job):
        future = Future()
        try:
            future.set_result(self.compute(cell, job, lambda event: job.events(cell, event)))
        except Exception as error:
            future.set_exception(self.told(error))
        return future

    def compute(self, cell, job, events):
        try:
            if job.run_id not in self.workers:
                self.workers[job.run_id] = Worker(job.message, registry(), here=here())
            return self.workers[job.run_id].run(cell.name, events)
        except Exception as error:
            raise failure_of(error, cell.name) from error

    def told(self, error):
        return CellFailedError(type(error).__name__, str(error))


def test_the_shipped_executors_pass() -> None:
    for name, settings in (("local", {}), ("processes", {"jobs": 1})):
        findings = check_executor(registry().get("executors", name), settings)
        assert [finding for finding in findings if not finding.passed] == []
    (lost,) = [finding.detail for finding in findings if finding.check == "lost"]
    if Path("/proc/self/stat").is_file():
        assert "the cell computed again: LostWorkerError: its process ended: SIGKILL" in lost


def test_an_executor_that_tells_by_events_alone_passes(made_once) -> None:
    assert check(Inline) == {}


# --- what it is ------------------------------------------------------------------------------


class NoSlots(Inline):
    slots = 0


class Unfinished(Executor):
    pass


class Careless(Inline):
    @dataclass(frozen=True)
    class Config:
        jobs: object = 3


class ManyLines(Inline):
    @dataclass(frozen=True)
    class Config:
        jobs: int = 3

        def __post_init__(self):
            if self.jobs < 0:
                raise KeyError("two\nlines")


def test_what_an_executor_is_comes_first() -> None:
    first = ("class", "config", "nonsense", "slots")
    assert check(NoSlots, *first) == {"slots": "slots must be an int of at least 1, not 0"}
    assert "does not implement submit" in check(Unfinished, "class")["class"]
    assert check(Careless, *first) == {"nonsense": "field 'jobs' accepts a value of any type"}
    assert "ends in KeyError, not in a UsageError" in check(ManyLines, *first)["nonsense"]


class HandsOn(Inline):
    """Options that it does not know are another program's."""

    @dataclass(frozen=True)
    class Config:
        FURTHER = "further"
        nodes: int = 1
        further: dict[str, str] | None = None


def test_options_that_are_handed_on_are_no_nonsense() -> None:
    assert check(HandsOn, "nonsense") == {}


# --- cells and events ------------------------------------------------------------------------

SEVERAL = ("run", "events", "receipts", "failure", "refusal", "leftovers")


class LosesEvents(Inline):
    def compute(self, cell, job, events):
        return super().compute(cell, job, lambda e: e["event"] == "close" or events(e))


class LosesValues(Inline):
    def compute(self, cell, job, events):
        return super().compute(cell, job, lambda e: e["event"] == "rows" or events(e))


class Silent(Inline):
    def compute(self, cell, job, events):
        return super().compute(cell, job, lambda event: None)


class AfterItsEnd(Inline):
    """Its futures are done before what the cells tell has come."""

    def submit(self, cell, job):
        kept, future = [], Future()

        def end():
            time.sleep(0.05)
            try:
                future.set_result(self.compute(cell, job, kept.append))
            except Exception as error:
                future.set_exception(self.told(error))
            for event in kept:
                job.events(cell, event)

        thread = threading.Timer(0.01, end)
        thread.start()
        return future


class Backwards(Inline):
    def compute(self, cell, job, events):
        kept = []
        found = super().compute(cell, job, kept.append)
        for event in kept:
            events(event | {"rows": event["rows"][::-1]} if event["event"] == "rows" else event)
        return found


class OfAnother(Inline):
    last = None

    def compute(self, cell, job, events):
        before, OfAnother.last = OfAnother.last or cell, cell
        return super().compute(cell, job, lambda event: job.events(before, event))


class WrongReceipt(Inline):
    last = None

    def compute(self, cell, job, events):
        found = super().compute(cell, job, events)
        before, WrongReceipt.last = WrongReceipt.last or found, found
        return before


class Undone(Inline):
    """It says that cells are done which it has not begun."""

    def compute(self, cell, job, events):
        if cell.stage == "sanity":
            return WrongReceipt.last
        WrongReceipt.last = super().compute(cell, job, events)
        return WrongReceipt.last


class NoFuture(Inline):
    def submit(self, cell, job):
        return super().submit(cell, job).result()


@pytest.mark.parametrize(
    ("plugged", "failing", "line"),
    [
        (LosesEvents, "events", "bars were not closed; events are lost"),
        (LosesValues, "run", "there are other files: metrics.jsonl"),
        (Silent, "events", "no event of any cell arrived"),
        (AfterItsEnd, "events", "events came after its future was done"),
        (Backwards, "events", "another order than they were made in"),
        (OfAnother, "events", "an event of .* was told of"),
        (WrongReceipt, "receipts", "another receipt than lies beside the output"),
        (Undone, "run", "the executor left cells undone: sanity/0"),
        (NoFuture, "run", "submit returned Receipt, not a concurrent Future"),
    ],
)
def test_what_is_lost_late_or_mixed_up_is_found(plugged, failing, line, made_once) -> None:
    failed = check(plugged, *SEVERAL)
    assert failing in failed, failed
    assert re.search(line, failed[failing]), failed


# --- failures --------------------------------------------------------------------------------


class Swallows(Inline):
    def submit(self, cell, job):
        future = super().submit(cell, job)
        if future.exception() is None:
            self.last = future.result()
            return future
        swallowed = Future()
        swallowed.set_result(self.last)
        return swallowed


class Tries(Inline):
    """It computes again what failed."""

    def compute(self, cell, job, events):
        try:
            return super().compute(cell, job, events)
        except RobustDDError:
            return super().compute(cell, job, events)


class Loses(Inline):
    """A cell's failure looks like a lost worker."""

    def told(self, error):
        return OSError(str(error))


class Rewords(Inline):
    def told(self, error):
        return CellFailedError("RunFailedError", "something went wrong")


class OwnMessage(Inline):
    """It does not hand on what the process that planned says of itself."""

    def submit(self, cell, job):
        return super().submit(cell, replace(job, message={**job.message, "fingerprint": here()}))


@pytest.mark.parametrize(
    ("plugged", "failing", "line"),
    [
        (Swallows, "failure", "must be told as 'expert 0 diverged"),
        (Tries, "failure", "failed and was computed again"),
        (Loses, "failure", "must be told as 'expert 0 diverged"),
        (Rewords, "failure", "not as 'something went wrong'"),
        (OwnMessage, "refusal", "must refuse; the run is done: hand on job.message as it is"),
    ],
)
def test_failures_have_to_be_told_once_and_as_they_are(plugged, failing, line, made_once) -> None:
    failed = check(plugged, *SEVERAL)
    assert failing in failed, failed
    assert line in failed[failing]
    assert not {"run", "events", "receipts", "leftovers"} & failed.keys(), failed


# --- leaving ---------------------------------------------------------------------------------


class LeavesProcess(Inline):
    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __enter__(self):
        self.started.append(subprocess.Popen(["sleep", "300"], env={}, start_new_session=True))
        return self


class LeavesThread(Inline):
    def __enter__(self):
        self.end = threading.Event()
        threading.Thread(target=self.end.wait, args=(8,), name="forgotten", daemon=True).start()
        return self


class RaisesOnLeaving(Inline):
    def __exit__(self, kind, error, trace):
        if error is not None:
            raise OSError("the connection is gone")


class SlowToLeave(Inline):
    def __exit__(self, kind, error, trace):
        if error is not None:
            time.sleep(1.5)


class GoesOn(Inline):
    """What it computed is written to after it was left."""

    def submit(self, cell, job):
        self.work = Path(cell.output).parent / "work"
        return super().submit(cell, job)

    def __exit__(self, kind, error, trace):
        if error is not None:

            def write():
                for _ in range(15):
                    self.work.mkdir(exist_ok=True)
                    (self.work / "state").write_text(str(time.time()))
                    time.sleep(0.1)

            threading.Thread(target=write, daemon=True).start()


class Once(Inline):
    entered = False

    def __enter__(self):
        if self.entered:
            raise RuntimeError("already started")
        self.entered = True
        return self


@pytest.mark.parametrize(
    ("plugged", "failing", "line"),
    [
        (LeavesProcess, "leftovers", "it leaves process"),
        (LeavesThread, "leftovers", "thread 'forgotten'"),
        (RaisesOnLeaving, "leaving", "the connection is gone"),
        (SlowToLeave, "leaving", "it took 2 s, more than 1"),
        (GoesOn, "leaving", "left, its cell goes on: state is written"),
        (Once, "again", "already started"),
    ],
)
def test_leaving_stops_everything_and_can_be_repeated(
    plugged, failing, line, made_once, monkeypatch
) -> None:
    monkeypatch.setattr(executors, "GRACE_S", 1.0)
    monkeypatch.setattr(executors, "LEAVE_S", 1.0)
    failed = check(plugged, failing)
    assert failing in failed, failed
    assert line in failed[failing]
    if plugged is LeavesProcess:
        for process in LeavesProcess.started:
            assert process.wait(5) == -signal.SIGKILL, "what is left over is killed"


def test_an_interruption_that_the_shell_ignores_is_one_for_the_checks(made_once) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert check(Inline, "leaving") == {}
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class Never(Inline):
    def submit(self, cell, job):
        return Future()


def test_cells_that_do_not_end_are_given_up(made_once, monkeypatch) -> None:
    monkeypatch.setattr(executor_runs, "LIMIT_S", 1.0)
    assert "cells do not end: given up after 1 s" in check(Never, "run")["run"]


# --- lost workers ----------------------------------------------------------------------------


class TriesLost(Inline):
    """It computes a cell again whose process was lost."""

    entered = 0

    def __enter__(self):
        self.entered += 1
        return self

    def compute(self, cell, job, events):
        if cell.stage == "distill":
            for _ in range(self.entered):  # at first interrupted, then lost once
                super().compute(cell, job, events)
                shutil.rmtree(cell.output.parent / "work")
                cell.output.unlink()
            if self.entered == 1:
                raise OSError("interrupted")
        return super().compute(cell, job, events)


def test_retries_of_lost_cells_are_the_pipelines(made_once) -> None:
    failed = check(TriesLost, "lost")
    assert "retries are the pipeline's" in failed["lost"]

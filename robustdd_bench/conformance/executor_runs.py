"""The runs that executors are checked on, what they leave, and a look at how an executor works.

Digits, two images a class, a ConvNet of depth 2 and width 4: seconds. MTT has cells of every kind.
One of its runs diverges by its settings, and one is long enough to be interrupted.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from robustdd_bench.conformance.findings import FailedCheckError
from robustdd_bench.executors import RECEIPT, Cell, Executor, Job, LocalExecutor, Receipt
from robustdd_bench.filenames import (
    LOCK_FILE,
    LOG_FILE,
    METRICS_FILE,
    PLAN_FILE,
    RECORD_FILE,
    WORK_FOLDER,
)
from robustdd_bench.files import read_json
from robustdd_bench.guard import blame_stranger
from robustdd_bench.plugins import Registry
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.bars import Bar
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.sweeps.plan import SweepRun, plan_sweep
from robustdd_bench.sweeps.run import Outcome, run_sweep

LIMIT_S = 240.0
"""Seconds after which the checks' runs are given up."""
LONG = 61
"""Steps of the distillation that is interrupted; no other bar has as many."""
TRACK = """\
name = "check-executor"
version = 1
summary = "digits, 2 images per class, ConvNet-2 of width 4; for checks of executors"
data = { dataset = "digits", ipc = 2, flip = false, options = { test_fraction = 0.05 } }
network = { name = "convnet", options = { depth = 2, width = 4 } }
students = { count = 1, epochs = 3, batch_size = 8, learning_rate = 0.01 }
threat = { norm = "Linf", ladder = [0.05, 0.10], headline = 0.10 }

[[attacks]]
name = "fgsm"

[[attacks]]
name = "pgd"
config = { steps = 2 }
"""
_MTT = (
    "start_epochs = 1, match_epochs = 2, expert_batch = 512, student_steps = 2, "
    "checkpoint_seconds = 0"
)
SWEEP = f"""\
name = "check-executor"
tracks = "track.toml"
[[runs]]
method = "mtt"
set = {{ {_MTT}, experts = 2, iterations = 3 }}
[[runs]]
method = "mtt"
set = {{ {_MTT}, experts = 1, iterations = 3, expert_lr = 1e30 }}
[[runs]]
method = "random"
[[runs]]
method = "random"
seeds = [1]
[[runs]]
method = "mtt"
set = {{ {_MTT}, experts = 2, iterations = {LONG} }}
"""
GOOD, DIVERGES, BESIDE, REFUSED, INTERRUPTED = range(5)
"""The runs by their place in the sweep."""
_TIME = re.compile(r"^\S+ |(,| after) [\d.]+ (ms|s|min|h)\b.*$")
_OTHER = (RECORD_FILE, PLAN_FILE, LOG_FILE, RECEIPT, METRICS_FILE, LOCK_FILE)


@dataclass
class WatchedCell:
    """A cell that was handed to the executor, and what came of it."""

    run_id: str
    cell: Cell
    future: Future[Receipt] | None = None
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    """What was told, with the name of the cell that it was told of."""
    late: int = 0
    """Events that came when the future was done."""
    receipt: Receipt | None = None
    """What lay beside the output when the future was done."""

    def opened(self) -> int:
        """How often the outermost bar that was opened most often was opened: once by one try."""
        titles = [e["title"] for _, e in self.events if e.get("event") == "bar" and not e["depth"]]
        return max(map(titles.count, titles), default=0)


class WatchedExecutor(Executor):
    """Hands everything on to another executor, and looks.

    Args:
        inner: the other one.
        owner: its plugin.
        refused: the id of a run whose jobs are changed so that workers have to refuse them.
    """

    def __init__(self, inner: Executor, owner: str, refused: str = "") -> None:
        super().__init__(inner.config)
        self._inner, self._owner, self._refused = inner, owner, refused
        self._what = f"executor {type(inner).__name__!r}"
        self.slots = inner.slots
        self.submissions: list[WatchedCell] = []
        self.here = False
        """Whether a cell was computed in this process."""
        self.exit_error: Exception | None = None

    def __enter__(self) -> Self:
        with blame_stranger(self._owner, self._what):
            self._inner.__enter__()
        self.slots = self._inner.slots
        return self

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Submit to the other one, and remember what comes of it."""
        one = WatchedCell(job.run_id, cell)
        self.submissions.append(one)

        def events(told: Cell, event: Mapping[str, Any]) -> None:
            one.late += one.future is not None and one.future.done()
            one.events.append((told.name, event))
            job.events(told, event)

        def run_here(given: Cell) -> Receipt:
            self.here = True
            return job.run_here(given)

        def ended(future: Future[Receipt]) -> None:
            one.receipt = cell.receipt()

        message = job.message
        if job.run_id == self._refused:
            message = {**message, "fingerprint": {**message["fingerprint"], "torch": "0.0"}}
        watched = dataclasses.replace(job, message=message, events=events, run_here=run_here)
        with blame_stranger(self._owner, self._what):
            future = self._inner.submit(cell, watched)
        if not isinstance(future, Future):
            raise TypeError(f"submit returned {type(future).__name__}, not a concurrent Future")
        one.future = future
        future.add_done_callback(ended)
        return future

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with blame_stranger(self._owner, self._what):
                self._inner.__exit__(kind, error, trace)
        except Exception as raised:
            self.exit_error = raised
            raise

    def of(self, run_id: str) -> list[WatchedCell]:
        """What was submitted of a run."""
        return [one for one in self.submissions if one.run_id == run_id]


class HookedReporter(NullReporter):
    """Calls a function at each step of the long distillation that is told.

    Args:
        folder: the run's.
        hook: the function; it may raise.
    """

    def __init__(self, folder: Path, hook: Callable[[], object]) -> None:
        super().__init__(folder)
        self._hook = hook

    def _open(self, title: str, total: int, done: int, depth: int) -> Bar:
        bar = super()._open(title, total, done, depth)
        return _HookedBar(bar, self._hook) if total == LONG else bar


class _HookedBar(Bar):
    def __init__(self, bar: Bar, hook: Callable[[], object]) -> None:
        super().__init__(bar.title, bar.total, bar.done, bar.depth)
        self._hook = hook

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if 0 < self.done < LONG:
            self._hook()

    def close(self, *, finished: bool) -> None:
        return


class Runs:
    """The runs in a folder.

    Args:
        folder: an empty one, which workers see.
        registry: what is installed.
    """

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._folder, self._registry = folder, registry
        self.pressed_s: float | None = None
        """When the run was interrupted, by the monotonic clock."""

    @cached_property
    def _sweep(self) -> Any:
        (self._folder / "track.toml").write_text(TRACK, encoding="utf-8")
        path = self._folder / "sweep.toml"
        path.write_text(SWEEP, encoding="utf-8")
        return plan_sweep(path, self._registry, device="cpu")

    @property
    def runs(self) -> tuple[SweepRun, ...]:
        """All runs, at their places."""
        found: tuple[SweepRun, ...] = self._sweep.runs
        return found

    def folder_of(self, place: int, out: str) -> Path:
        """The folder of a run."""
        return self.runs[place].plan.folder(self._folder / out)

    def together(self, executor: Executor, out: str, count: int) -> tuple[Outcome, ...]:
        """Compute the first runs of the sweep.

        Raises:
            FailedCheckError: they do not end.
        """
        part = dataclasses.replace(self._sweep, runs=self.runs[:count])
        where = self._folder / out
        with _limited():
            result = run_sweep(part, self._registry, executor, out=where, data_root=Path("data"))
        return result.outcomes

    @cached_property
    def local(self) -> tuple[Outcome, ...]:
        """The outcomes of `LocalExecutor`, in the folder "local"."""
        return self.together(LocalExecutor(), "local", INTERRUPTED + 1)

    def long(self, executor: Executor, out: str, hook: Callable[[], object]) -> None:
        """Compute the long run, or what is left of it.

        Args:
            executor: where.
            out: the folder.
            hook: called at its steps.
        """
        with _limited():
            execute(
                self.runs[INTERRUPTED].plan,
                self._registry,
                executor,
                out=self._folder / out,
                data_root=Path("data"),
                reporter=lambda folder: HookedReporter(folder, hook),
            )

    def press(self) -> None:
        """Interrupt, once, as Ctrl-C does."""
        if self.pressed_s is None:
            self.pressed_s = time.monotonic()
            signal.raise_signal(signal.SIGINT)

    def moved(self, place: int, out: str, seconds: float) -> list[str]:
        """The working files of a run that are written within so many seconds."""
        folder = self.folder_of(place, out) / WORK_FOLDER

        def times() -> dict[str, int]:
            return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}

        before = times()
        time.sleep(seconds)
        return sorted(name for name, when in times().items() if before.get(name) != when)

    def difference(self, place: int, out: str, *, told: bool = True) -> str:
        """In what a run differs from that of `LocalExecutor`, costs apart; "" if in nothing.

        Args:
            place: the run.
            out: where it is.
            told: whether values and lines of the log have to be the same too; those of a run that
                was interrupted, or that found its experts in the store, are not.
        """
        _ = self.local
        folders = self.folder_of(place, out), self.folder_of(place, "local")
        return _difference(*folders) or (_difference_told(*folders) if told else "")

    def rows(self, place: int) -> list[str]:
        """The values of a run of `LocalExecutor`, in order."""
        _ = self.local
        return _rows(self.folder_of(place, "local"))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Interrupt what does not end; interruptions work also where the shell had them ignored.

    Raises:
        FailedCheckError: it was.
    """
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def interrupt() -> None:
        over.set()
        _thread.interrupt_main()

    timer = threading.Timer(LIMIT_S, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if over.is_set():
            raise FailedCheckError(f"cells do not end: given up after {LIMIT_S:g} s") from error
        raise
    finally:
        timer.cancel()
        timer.join()
        if before in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGINT, before)


def _difference(ours: Path, theirs: Path) -> str:
    if not (ours / RECORD_FILE).is_file():
        return "there is no record"
    one, other = (dict(read_json(folder / RECORD_FILE)) for folder in (ours, theirs))
    if one["status"] != "complete":
        failure = one.get("failure") or {}
        return f"the run failed in {failure.get('cell')}: {failure.get('reason')}"
    if one["results_sha256"] != other["results_sha256"]:
        return "results_sha256 is another one"
    one.pop("costs"), other.pop("costs")
    if one != other:
        return f"the record differs in {', '.join(k for k in other if one.get(k) != other[k])}"
    mine, its = _files(ours), _files(theirs)
    if mine.keys() != its.keys():
        return f"there are other files: {', '.join(sorted(mine.keys() ^ its.keys())[:3])}"
    for name in its:
        if not name.endswith(_OTHER) and mine[name].read_bytes() != its[name].read_bytes():
            return f"{name} differs"
    return ""


def _difference_told(ours: Path, theirs: Path) -> str:
    values = sorted(_rows(ours)), sorted(_rows(theirs))
    if values[0] != values[1]:
        return f"{METRICS_FILE} has {len(values[0])} values, not {len(values[1])}, or other ones"
    lines = _log(ours), _log(theirs)
    if lines[0] != lines[1]:
        odd = next(x for x in (*lines[0], *lines[1]) if lines[0].count(x) != lines[1].count(x))
        return f"{LOG_FILE} differs in {odd!r}"
    return ""


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def _rows(folder: Path) -> list[str]:
    text = (folder / METRICS_FILE).read_text(encoding="utf-8")
    return [row(json.loads(line)) for line in text.splitlines()]


def row(values: Mapping[str, Any]) -> str:
    """A line of values as a text that can be compared."""
    return json.dumps(values, sort_keys=True)


def _log(folder: Path) -> list[str]:
    """The lines of the log without times, in no order; those about lost workers apart."""
    lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    return sorted(_TIME.sub("", line) for line in lines if "worker was lost" not in line)

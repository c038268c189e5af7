"""How a run tells what it is doing, whatever the display.

A `RunReporter` is the `Reporter` that methods get, with the stages of the pipeline on top. Whatever
the display, values go to `metrics.jsonl`, notes to `run.log`, images to `snapshots/`, and all of
them as events to the loggers of plugins (hook `robustdd_report`; docs/reports.md lists the events).
Nothing in a loop makes the device wait: values are read every few seconds, all at once, and images
are shown a dozen times.
"""

from __future__ import annotations

import abc
import contextlib
import datetime
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet, Progress
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import LOG_FILE, METRICS_FILE
from robustdd_bench.guard import told
from robustdd_bench.runs.progress.bars import Bar, Pulsing
from robustdd_bench.runs.progress.loggers import Publish
from robustdd_bench.runs.progress.metrics import MetricsFile, Row, Values, hold, read_values
from robustdd_bench.runs.progress.remaining import Remaining
from robustdd_bench.runs.progress.snapshots import decoded, snapshot_picture, write_snapshot
from robustdd_bench.text.terminal import one_line
from robustdd_bench.toolkit.snapshots import snapshot_steps

FLUSH_S = 3.0
MOST_ROWS = 4096


class RunReporter(abc.ABC):
    """The reporter of one run; a context manager.

    Args:
        folder: the run's folder, for `metrics.jsonl`, `run.log` and `snapshots/`; None writes none.
        publish: called with each event as `publish(event=...)`.
        flush_s: seconds between two readings of the buffered values.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        publish: Publish | None = None,
        flush_s: float = FLUSH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._log = None if folder is None else folder / LOG_FILE
        self._file = None if folder is None else MetricsFile(folder / METRICS_FILE)
        self._publish = publish
        self._flush_s = flush_s
        self._clock = clock
        self._flushed = clock()
        self._rows: list[Row] = []
        self._bars: list[Bar] = []
        self._stages: list[str] = []
        self._cell = self._name = ""
        self._place = ""
        self._depth = 0
        self._remote: dict[tuple[str, int], Bar] = {}
        self.remaining: Remaining | None = None
        """What is left of the run, where that is known."""
        self.pulse: Callable[[], object] | None = None
        """Called at each step of a cell that runs in this process; it may interrupt it."""

    @abc.abstractmethod
    def _open(self, title: str, total: int, done: int, depth: int) -> Bar:
        """Begin to show a bar."""

    def _say(self, text: str) -> None:
        """Show a note, where the display shows notes."""
        return

    @property
    def _stage(self) -> str:
        """The stage of what is said now: of the cell that runs here, or the one begun last."""
        return self._cell or (self._stages[-1] if self._stages else "")

    def wants_times(self) -> bool:
        """Whether it would show now when the run will end, if `expect` told it."""
        return False

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Be told what the cells that are not done will take, by name; {} where it is not known."""
        self.remaining = Remaining(seconds, self._clock)

    def finished(self, cell: str) -> None:
        """Be told that a cell is done."""
        if self.remaining is not None:
            self.remaining.finished(cell)

    def left_text(self) -> str:
        """What is left of the run, for people; "" where it is not known."""
        return "" if self.remaining is None else self.remaining.text(self._bars)

    @contextlib.contextmanager
    def _bar(self, title: str, total: int, done: int, depth: int, cell: str = "") -> Iterator[Bar]:
        bar = self._open(one_line(title, 60), total, done, depth)
        bar.cell = cell
        self._bars.append(bar)
        finished = False
        try:
            yield bar
            finished = True
        finally:
            self._bars.remove(bar)
            bar.close(finished=finished)

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        """A progress bar of `total` steps, nested in the one that is open."""
        before = self._place
        if not self._place:  # the outermost bar of a stage tells its metrics from its siblings'
            self._place = title
        try:
            depth = self._depth + bool(self._stages)
            self._depth += 1
            with self._bar(title, total, 0, depth, self._name) as bar:
                yield bar if self.pulse is None else Pulsing(bar, self.pulse)
        finally:
            self._depth -= 1
            self._place = before

    @contextlib.contextmanager
    def cell(self, stage: str, name: str = "") -> Iterator[None]:
        """A cell of a stage, which runs in this process."""
        before = (self._cell, self._place, self._name)
        self._cell, self._place, self._name = stage, "", name
        try:
            yield
        finally:
            self._cell, self._place, self._name = before

    @contextlib.contextmanager
    def run(self, **facts: Any) -> Iterator[None]:
        """A run from its start to its end, for the loggers.

        Args:
            **facts: JSON values that say which run it is.
        """
        folder = None if self._folder is None else str(self._folder)
        self._event("run", folder=folder, **facts)

        def told(status: str, wall_s: float) -> None:
            with contextlib.suppress(Exception):  # what ended the run is the better reason
                self.flush()
            self._event("end", status=status, wall_s=wall_s)

        with self._timed(told):
            yield
            self.flush()

    @contextlib.contextmanager
    def _timed(self, told: Callable[[str, float], None]) -> Iterator[None]:
        """Tell at the end: finished, failed or interrupted, and the seconds it took."""
        start = self._clock()
        status = "failed"
        try:
            yield
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            told(status, self._clock() - start)

    @contextlib.contextmanager
    def stage(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """A stage of `total` cells, of which `done` are done; yields what tells of one more.

        Stages may overlap.
        """
        self._stages.append(title)
        self._event("stage", stage=title, status="started", total=total, done=done)
        self._write(f"{title}: {done} of {total} done")

        def told(status: str, wall_s: float) -> None:
            self._stages.remove(title)
            with contextlib.suppress(RunFailedError):  # what ended the stage is the better reason
                self._write(f"{title}: {status} after {wall_s:.1f} s")
            self._event("stage", stage=title, status=status, wall_s=wall_s)

        with self._timed(told), self._bar(title, total, done, 0) as bar:
            yield bar.advance

    def metrics(self, step: int, **values: float | Tensor) -> None:
        """Values of one step; they are read later, in batches.

        Raises:
            ValueError: a value is not one number, or is called "step" or "stage".
        """
        row = Row(self._where(), int(step), hold(values))
        if self._file is not None and self._file.holds(row):
            return
        self._rows.append(row)
        if self._clock() - self._flushed >= self._flush_s or len(self._rows) >= MOST_ROWS:
            self.flush()

    def _where(self) -> str:
        return "/".join(part for part in (self._stage, self._place) if part)

    def images(self, step: int, total: int, current: Callable[[], DistilledSet]) -> None:
        """Show the set after `step` of `total` steps, if that is one of `snapshot_steps`."""
        if step in snapshot_steps(total):
            with torch.no_grad():
                self.show_images(step, current())

    def work(self, items: int, unit: str) -> None:  # noqa: B027 (nothing has to be done)
        """Items that were worked through; the cell that is run counts them."""

    def show_images(self, step: int, distilled: DistilledSet) -> None:
        """Keep a picture of the set after `step` steps; one that is there already is no event.

        Raises:
            RunFailedError: the file cannot be written.
        """
        self._keep_picture(self._where(), int(step), snapshot_picture(distilled))

    def _keep_picture(self, stage: str, step: int, picture: Tensor) -> None:
        if self._folder is None or write_snapshot(self._folder, step, picture):
            self._event("images", stage=stage, step=step, picture=picture)

    def note(self, text: str) -> None:
        """A line for the run's log."""
        self._note(self._stage, text)

    def _note(self, stage: str, text: str) -> None:
        self._write(text)
        self._say(one_line(text))
        self._event("note", stage=stage, text=text)

    def flush(self) -> None:
        """Read the buffered values, write them and hand them to the loggers.

        Raises:
            RunFailedError: the file cannot be written.
        """
        self._flushed = self._clock()
        rows, self._rows = self._rows, []
        if not rows:
            return
        self._keep_values(
            [
                Values(row.stage, row.step, of)
                for row, of in zip(rows, read_values(rows), strict=True)
            ]
        )

    def _keep_values(self, rows: Sequence[Values]) -> None:
        if self._file is not None:
            self._file.append(
                [{"step": row.step, "stage": row.stage, **row.values} for row in rows]
            )
        batch = getattr(self._publish, "batch", contextlib.nullcontext)
        with batch():
            for row in rows:
                self._event("metrics", stage=row.stage, step=row.step, values=row.values)

    def take(self, cell: str, event: Mapping[str, Any]) -> None:
        """Show and keep what a cell tells that another process computes.

        Args:
            cell: its name.
            event: what its reporter sent; see `robustdd_bench.runs.progress.events`.

        Raises:
            RunFailedError: a file cannot be written.
        """
        kind = event["event"]
        if kind == "rows":
            rows = [Values(*row) for row in event["rows"]]
            held = self._file.holds if self._file is not None else lambda row: False
            self._keep_values([row for row in rows if not held(row)])
        elif kind == "note":
            self._note(event["stage"], event["text"])
        elif kind == "log":
            self._write(event["text"])
        elif kind == "images":
            self._keep_picture(event["stage"], event["step"], decoded(event["picture"]))
        elif kind == "bar":
            depth = event["depth"] + bool(self._stages)
            bar = self._open(one_line(event["title"], 60), event["total"], 0, depth)
            bar.cell = cell
            self._remote[cell, event["bar"]] = bar
            self._bars.append(bar)
        elif kind == "advance":
            bar = self._remote[cell, event["bar"]]
            bar.advance(event["done"] - bar.done)
            bar.resumed = event.get("resumed", 0)
        elif kind == "close":
            self._end_bar((cell, event["bar"]), finished=event["finished"])

    def _end_bar(self, key: tuple[str, int], *, finished: bool) -> None:
        bar = self._remote.pop(key)
        self._bars.remove(bar)
        bar.close(finished=finished)

    def lost(self, cell: str) -> None:
        """The process that computed a cell is gone: what it told comes again."""
        for key in [key for key in self._remote if key[0] == cell]:
            self._end_bar(key, finished=False)
        if self._file is not None:
            self._file = MetricsFile(self._file.path)

    def close(self) -> None:
        """Write what is left; further values may still be given."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # What ended the run must not be hidden by a disk that is full as well.
        with contextlib.suppress(Exception):
            self.close()
        with contextlib.suppress(RunFailedError):
            if isinstance(error, Exception) and not isinstance(error, UsageError):
                self._write("".join(traceback.format_exception(error)))
            else:
                self._write(told(error))

    def _event(self, event: str, **fields: Any) -> None:
        if self._publish is not None:
            self._publish(event={"event": event, **fields})

    def _write(self, text: str) -> None:
        if self._log is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{now} {text.rstrip()}\n")
        except OSError as error:
            raise RunFailedError(f"cannot write {self._log}: {error.strerror or error}") from error


class _SilentBar(Bar):
    def advance(self, steps: int = 1) -> None:
        self.moved(steps)

    def close(self, *, finished: bool) -> None:
        return


class NullReporter(RunReporter):
    """Shows nothing; the files and the loggers get everything."""

    def _open(self, title: str, total: int, done: int, depth: int) -> Bar:
        return _SilentBar(title, total, done, depth)

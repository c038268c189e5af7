"""The displays of a run: bars on a terminal, plain lines in a pipe, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from robustdd_bench.runs.progress.bars import Bar
from robustdd_bench.runs.progress.loggers import Publish, plugin_loggers
from robustdd_bench.runs.progress.remaining import share
from robustdd_bench.runs.progress.reporter import NullReporter, RunReporter
from robustdd_bench.text.terminal import drawing, is_terminal, no_colour

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = [
    "NullReporter",
    "PlainReporter",
    "RichReporter",
    "RunReporter",
    "make_reporter",
    "plugin_loggers",
]

LINE_S = 5.0
SILENCE_S = 60.0


class _PlainBar(Bar):
    """Lines instead of a bar.

    An outermost bar has a line at its start and its end. Between them, and for a nested bar that
    takes longer than LINE_S, there is a line at each quarter, at most one every LINE_S, and at
    least one every SILENCE_S.
    """

    def __init__(self, reporter: PlainReporter, *fields: Any) -> None:
        super().__init__(*fields)
        self._reporter = reporter
        self._start = self._said = reporter.now()
        self._quarter = self._quarters()
        if self.depth == 0:
            reporter.line(f"{self.title}: {self.done}/{self.total}")

    def _quarters(self) -> int:
        return 4 * self.done // self.total if self.total > 0 else 0

    def advance(self, steps: int = 1) -> None:
        self.moved(steps)
        now = self._reporter.now()
        silent = now - self._said
        if silent < LINE_S:
            return
        quarter = self._quarters()
        if (quarter > self._quarter and self.done < self.total) or silent >= SILENCE_S:
            self._quarter, self._said = quarter, now
            percent = f" ({100 * self.done // self.total} %)" if self.total > 0 else ""
            wall, left = f"{now - self._start:.1f} s", self._reporter.left_text()
            run = f"; the run: {left}" if left else ""
            self._reporter.line(f"{self.title}: {self.done}/{self.total}{percent}, {wall}{run}")

    def close(self, *, finished: bool) -> None:
        wall_s = self._reporter.now() - self._start
        if self.depth == 0 or wall_s >= LINE_S:
            end = "done" if finished else f"stopped at {self.done}/{self.total}"
            self._reporter.line(f"{self.title}: {end}, {wall_s:.1f} s")


class PlainReporter(RunReporter):
    """Plain lines, for a stream that is no terminal.

    Args:
        stream: where the lines go; one that breaks is not written to any more.
        folder: see `RunReporter`.
        **options: see `RunReporter`.
    """

    def __init__(self, stream: IO[str], folder: Path | None = None, **options: Any) -> None:
        super().__init__(folder, **options)
        self._stream: IO[str] | None = stream
        self._began = self._clock()

    def wants_times(self) -> bool:
        """Only of a run that takes longer: finding out costs a moment."""
        return self.remaining is None and self._clock() - self._began >= SILENCE_S

    def now(self) -> float:
        """Seconds on the reporter's clock."""
        return self._clock()

    def line(self, text: str) -> None:
        """Write a line; a reader that went away does not end the run."""
        if self._stream is None:
            return
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def _say(self, text: str) -> None:
        self.line(text)

    def _open(self, title: str, total: int, done: int, depth: int) -> Bar:
        return _PlainBar(self, title, total, done, depth)


class _RichBar(Bar):
    REDRAW_S = 0.1  # rich locks and keeps samples on every update; a hot loop must not pay for it

    def __init__(self, reporter: RichReporter, task: TaskID, *fields: Any) -> None:
        super().__init__(*fields)
        self.task = task
        self._reporter = reporter
        self._drawn = 0.0

    def advance(self, steps: int = 1) -> None:
        self.moved(steps)
        now = time.monotonic()
        if now - self._drawn >= self.REDRAW_S:
            self._drawn = now
            self._reporter.draw(self)

    def close(self, *, finished: bool) -> None:
        self._reporter.draw(self)
        self._reporter.remove(self)


class RichReporter(RunReporter):
    """Nested bars on a terminal; an outermost bar stays on the screen when it ends.

    Args:
        stream: a terminal.
        folder: see `RunReporter`.
        **options: see `RunReporter`.
    """

    def __init__(self, stream: IO[str], folder: Path | None = None, **options: Any) -> None:
        from rich.console import Console

        super().__init__(folder, **options)
        self._console = Console(
            file=stream, force_terminal=True, no_color=no_colour(), highlight=False
        )
        self._display: RichProgress | None = None
        self._drawing = contextlib.ExitStack()
        self._whole: TaskID | None = None
        self._began = self._clock()

    def wants_times(self) -> bool:
        """From the beginning."""
        return self.remaining is None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """See `RunReporter.expect`; a line for the whole run is shown from now on."""
        super().expect(seconds)
        self._draw_whole()

    def finished(self, cell: str) -> None:
        """See `RunReporter.finished`."""
        super().finished(cell)
        self._draw_whole()

    def _draw_whole(self) -> None:
        """Show how far the run is and when it will end."""
        left = self.left_text()
        if self._display is None or self._whole is None or self.remaining is None or not left:
            return
        done = self.remaining.share(self._bars)
        spent = self._clock() - self._began
        self._display.update(self._whole, completed=done, left=left, spent=spent, visible=True)

    def _open(self, title: str, total: int, done: int, depth: int) -> Bar:
        from robustdd_bench.runs.progress.columns import make_progress

        if self._display is None:
            self._display = make_progress(self._console)
            self._display.start()
            self._drawing.enter_context(drawing(self._display))
            self._whole = self._display.add_task("whole run", total=1.0, left="", visible=False)
        indented = "  " * depth + title
        task = self._display.add_task(indented, total=total, completed=done)
        return _RichBar(self, task, title, total, done, depth)

    def draw(self, bar: _RichBar) -> None:
        """Show how far a bar is, the stage of its cell and the run."""
        if self._display is None:
            return
        self._display.update(bar.task, completed=bar.done)
        stage = bar.cell.partition("/")[0]
        for above in self._bars:
            if stage and above.depth == 0 and above.title == stage and isinstance(above, _RichBar):
                inside = sum(share(one) for one in self._outermost(stage))
                self._display.update(above.task, completed=above.done + inside)
        self._draw_whole()

    def _outermost(self, stage: str) -> Iterable[Bar]:
        """The outermost bar of each cell of a stage."""
        found: dict[str, Bar] = {}
        for bar in self._bars:
            if bar.cell.partition("/")[0] == stage and bar.done < bar.total:
                found.setdefault(bar.cell, bar)
        return found.values()

    def remove(self, bar: _RichBar) -> None:
        """End a bar. With the last one the display ends, so that nothing is left moving."""
        if self._display is None:
            return
        if bar.depth > 0:
            self._display.remove_task(bar.task)
        if not self._bars:
            if self._whole is not None:
                self._display.remove_task(self._whole)
                self._whole = None
            self._display.stop()
            self._drawing.close()
            self._display = None


def make_reporter(
    folder: Path | None = None,
    *,
    stream: IO[str] | None = None,
    publish: Publish | None = None,
    quiet: bool = False,
) -> RunReporter:
    """The reporter that fits the stream: bars on a terminal, plain lines elsewhere.

    Args:
        folder: the run's folder, for `metrics.jsonl` and `run.log`.
        stream: where progress is shown; stderr by default.
        publish: gets every event; see `plugin_loggers`.
        quiet: show nothing.
    """
    shown = sys.stderr if stream is None else stream
    if quiet or shown is None:
        return NullReporter(folder, publish=publish)
    if is_terminal(shown):
        return RichReporter(shown, folder, publish=publish)
    return PlainReporter(shown, folder, publish=publish)

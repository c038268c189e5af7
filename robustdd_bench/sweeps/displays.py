"""The displays of a sweep: a live table on a terminal, a line a finished run in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from robustdd_bench.runs.progress.displays import PlainReporter
from robustdd_bench.runs.progress.loggers import Publish
from robustdd_bench.runs.progress.reporter import NullReporter, RunReporter
from robustdd_bench.sweeps.plan import Sweep
from robustdd_bench.sweeps.run import ENDED, Outcome, SweepDisplay
from robustdd_bench.text.tables import with_deviation
from robustdd_bench.text.terminal import drawing, duration_text, is_terminal, no_colour, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

__all__ = ["LiveDisplay", "PlainDisplay", "make_sweep_display"]

HEADINGS = ("status", "method", "track", "seed", "settings", "clean", "robust *", "time")
RIGHT = ("seed", "clean", "robust *", "time")
STYLES = {"failed": "red", "done": "green", "done before": "green", "running": "bold"}
# Lines of a live table that are no runs: title, headings, rules, the line of progress.
FRAME_LINES = 8
COLUMN_GAP = 3


def cells(outcome: Outcome) -> list[str]:
    """The row of a run, under `HEADINGS`; accuracies in percent."""
    plan, record = outcome.run.plan, outcome.record
    shown = [outcome.status, plan.method, plan.track.name, str(plan.seed), outcome.run.settings]
    if record is None or record.aggregates is None or outcome.wall_s is None:
        return [*shown, "", "", ""]
    found = record.aggregates
    figures = [with_deviation(one.mean, one.std) for one in (found.clean, found.headline)]
    if not all(flag.passed for flag in record.flags):
        shown[0] += " (flagged)"
    return [*shown, *figures, duration_text(outcome.wall_s)]


class PlainDisplay(SweepDisplay):
    """A line for each run that has ended or is left to another process.

    Args:
        sweep: what is run.
        stream: where the lines go; one that breaks is not written to any more.
        publish: gets every event of the runs; see `plugin_loggers`.
    """

    def __init__(self, sweep: Sweep, stream: IO[str], publish: Publish | None = None) -> None:
        self._total = len(sweep.runs)
        self._lines = PlainReporter(stream)
        self._publish = publish

    def opened(self) -> contextlib.AbstractContextManager[object]:
        """Nothing has to be opened."""
        return contextlib.nullcontext()

    def show(self, index: int, outcome: Outcome) -> None:
        """Write a line, but not for a run that begins."""
        if outcome.status in ("running", "left"):  # of those there is one line for all
            return
        text = f"{index + 1}/{self._total} {outcome.status}: {outcome.run}"
        if outcome.status == "failed":
            text += f": {outcome.reason}"
        elif outcome.status == "busy":
            text += ": another process is at it"
        else:
            clean, robust, wall = cells(outcome)[-3:]
            text += f": clean {clean}, robust {robust}, {wall}"
        self._lines.line(one_line(text))

    def waiting(self, count: int) -> None:
        """Write nothing: each of those runs has had its line."""

    def reporter(self, folder: Path) -> RunReporter:
        """A reporter that shows nothing and writes the run's files."""
        return NullReporter(folder, publish=self._publish)


class _LiveReporter(NullReporter):
    """Keeps the bars of the running run for the table."""

    def progress_text(self) -> str:
        """Where the run is, from the outermost bar to the innermost."""
        bars = ", ".join(f"{bar.title} {bar.done}/{bar.total}" for bar in tuple(self._bars))
        left = self.left_text()
        return f"{left}: {bars}" if left else bars

    def wants_times(self) -> bool:
        """From the beginning."""
        return self.remaining is None


class LiveDisplay(SweepDisplay):
    """A table that is drawn again and again; where it is too long, the part around the running run.

    Args:
        sweep: what is run.
        out: the output folder.
        stream: a terminal.
        publish: gets every event of the runs; see `plugin_loggers`.
        **options: for `rich.console.Console`.
    """

    def __init__(
        self,
        sweep: Sweep,
        out: Path,
        stream: IO[str],
        publish: Publish | None = None,
        **options: Any,
    ) -> None:
        from rich.console import Console

        self._name = sweep.name
        self._outcomes = [Outcome(run, run.plan.folder(out)) for run in sweep.runs]
        self._publish = publish
        self._console: Console = Console(
            file=stream, force_terminal=True, no_color=no_colour(), highlight=False, **options
        )
        self._live: Live | None = None
        self._reporters: dict[Path, _LiveReporter] = {}
        self._at = 0
        self._since: dict[Path, float] = {}
        self._waiting = 0

    def show(self, index: int, outcome: Outcome) -> None:
        """Change a row; rich draws it."""
        self._outcomes[index], self._at = outcome, index
        self._waiting = 0
        if outcome.status == "running":
            self._since[outcome.folder] = time.monotonic()
        else:
            self._reporters.pop(outcome.folder.absolute(), None)

    def waiting(self, count: int) -> None:
        """Say below the table that the rest is other processes'."""
        self._waiting = count

    def reporter(self, folder: Path) -> RunReporter:
        """A reporter whose bars are shown below the table."""
        reporter = _LiveReporter(folder, publish=self._publish)
        self._reporters[folder.absolute()] = reporter
        return reporter

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Draw the table; where the sweep ends, the whole of it stays on the screen."""
        from rich.live import Live

        self._live = live = Live(
            get_renderable=self._drawn,
            console=self._console,
            refresh_per_second=4,
            redirect_stdout=False,  # stdout is data and may be a pipe
        )
        live.start()
        try:
            with drawing(live):
                yield
        finally:
            self._live = None
            live.stop()

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        return Group(self._table(), Text(one_line(self._below()), overflow="ellipsis"))

    def _below(self) -> str:
        """The line below the table."""
        if self._live is None:
            return ""
        if self._waiting:
            return f"waiting for {self._waiting} runs of other processes"
        texts = [reporter.progress_text() for reporter in tuple(self._reporters.values())]
        return " | ".join(filter(None, texts))

    def _table(self) -> RenderableType:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        counts = [outcome.status for outcome in self._outcomes]
        ended, failed = sum(status in ENDED for status in counts), counts.count("failed")
        title = f"{self._name}: {ended} of {len(counts)} runs have ended"
        title += f", {failed} failed" if failed else ""
        table = Table(
            box=box.SIMPLE_HEAD,
            title=Text(one_line(title)),
            title_justify="left",
            title_style="" if no_colour() else "bold",
            header_style="" if no_colour() else "bold",
        )
        rows = [self._cells(outcome) for outcome in self._visible()]
        if self._live is not None:
            self._shorten(rows)
        for heading in HEADINGS:
            justify: Literal["right", "left"] = "right" if heading in RIGHT else "left"
            table.add_column(heading, justify=justify, no_wrap=heading != "settings")
        for row in rows:
            style = "" if no_colour() else STYLES.get(row[0].partition(" ")[0], "dim")
            table.add_row(*map(Text, row), style=style)
        return table

    def _cells(self, outcome: Outcome) -> list[str]:
        """The row of a run; of the one that is running with the time since it began."""
        row = [one_line(cell) for cell in cells(outcome)]
        if outcome.status == "running" and self._live is None:
            row[0] = "interrupted"
        elif outcome.status == "running":
            row[-1] = duration_text(time.monotonic() - self._since[outcome.folder])
        return row

    def _shorten(self, rows: Sequence[list[str]]) -> None:
        """Cut settings off so that each row is one line and nothing else is cut."""
        column = HEADINGS.index("settings")
        widths = [max(map(len, texts)) for texts in zip(HEADINGS, *rows, strict=True)]
        others = sum(widths) - widths[column]
        room = self._console.width - others - COLUMN_GAP * (len(HEADINGS) + 1)
        for row in rows:
            row[column] = one_line(row[column], max(room, len(HEADINGS[column])))

    def _visible(self) -> Sequence[Outcome]:
        """The rows that fit on the screen, or all of them when the display has ended."""
        room = max(3, self._console.height - FRAME_LINES)
        if self._live is None or len(self._outcomes) <= room:
            return self._outcomes
        first = min(max(0, self._at - room // 2), len(self._outcomes) - room)
        return self._outcomes[first : first + room]


def make_sweep_display(
    sweep: Sweep, out: Path, *, stream: IO[str] | None = None, publish: Publish | None = None
) -> SweepDisplay:
    """The display that fits the stream: a live table on a terminal, lines elsewhere.

    Args:
        sweep: what is run.
        out: the output folder.
        stream: where progress is shown; stderr by default.
        publish: gets every event of the runs; see `plugin_loggers`.
    """
    shown = sys.stderr if stream is None else stream
    if is_terminal(shown):
        return LiveDisplay(sweep, out, shown, publish)
    return PlainDisplay(sweep, shown, publish)

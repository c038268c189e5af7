"""The columns of the bars on a terminal."""

from __future__ import annotations

import datetime

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Count(MofNCompleteColumn):
    """Steps that are done, of all; of the whole run a percentage."""

    def render(self, task: Task) -> Text:
        """The text of a bar."""
        if "left" in task.fields:
            return Text(f"{100 * task.completed:.0f} %", justify="right")
        return super().render(task)


class Spent(TimeElapsedColumn):
    """Time since the beginning; of the whole run since the beginning of this call."""

    def render(self, task: Task) -> Text:
        """The text of a bar."""
        spent = task.fields.get("spent")
        if spent is None:
            return super().render(task)
        return Text(str(datetime.timedelta(seconds=int(spent))))


class Left(ProgressColumn):
    """Time that is left; of the whole run also when it will end."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._remaining = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """The text of a bar."""
        if "left" in task.fields:
            return Text(task.fields["left"])
        return self._remaining.render(task)


def make_progress(console: Console) -> Progress:
    """Bars of a run on a console, which leave stdout alone."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        Count(),
        Spent(),
        Left(),
        console=console,
        redirect_stdout=False,  # stdout is data and may be a pipe
    )

"""The reporter of a process that computes cells for another one: all it hears becomes JSON values.

    {"event": "rows", "rows": [[stage, step, {"loss": 0.5}], ...]}
    {"event": "note", "stage": "distill", "text": "..."}
    {"event": "log", "text": "..."}, of an executor: for the log alone
    {"event": "images", "stage": "distill/matching", "step": 12, "picture": {"shape", "pixels"}}
    {"event": "bar", "bar": 1, "title": "matching", "total": 300, "depth": 0}
    {"event": "advance", "bar": 1, "done": 17}, with "resumed" where steps were done before
    {"event": "close", "bar": 1, "finished": true}

`RunReporter.take` shows and keeps them.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from robustdd_bench.executors import Events
from robustdd_bench.runs.progress.bars import Bar
from robustdd_bench.runs.progress.reporter import RunReporter
from robustdd_bench.runs.progress.snapshots import encoded

ADVANCE_S = 0.2
"""Seconds between two events of one bar."""


class _Sender:
    """Where the reporter publishes: events as JSON values, the values of many steps in one."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._rows: list[list[Any]] | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "metrics":
            row = [event["stage"], event["step"], event["values"]]
            if self._rows is not None:
                self._rows.append(row)
            else:
                self._events({"event": "rows", "rows": [row]})
        elif event["event"] == "images":
            self._events({**event, "picture": encoded(event["picture"])})
        else:
            self._events(event)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        self._rows = []
        yield
        rows, self._rows = self._rows, None
        self._events({"event": "rows", "rows": rows})


class _EventBar(Bar):
    _numbers = itertools.count()

    def __init__(self, events: Events, *fields: Any) -> None:
        super().__init__(*fields)
        self._events, self._number = events, next(self._numbers)
        self._said, self._said_done = time.monotonic(), 0
        self._tell("bar", title=self.title, total=self.total, depth=self.depth)

    def _tell(self, event: str, **fields: Any) -> None:
        self._events({"event": event, "bar": self._number, **fields})

    def advance(self, steps: int = 1) -> None:
        self.moved(steps)
        now = time.monotonic()
        if now - self._said >= ADVANCE_S:
            self._said = now
            self._advanced()

    def close(self, *, finished: bool) -> None:
        if self.done != self._said_done:
            self._advanced()
        self._tell("close", finished=finished)

    def _advanced(self) -> None:
        self._said_done = self.done
        resumed = {"resumed": self.resumed} if self.resumed else {}
        self._tell("advance", done=self.done, **resumed)


class EventReporter(RunReporter):
    """Sends what it hears.

    Args:
        events: takes JSON values.
        **options: see `RunReporter`.
    """

    def __init__(self, events: Events, **options: Any) -> None:
        super().__init__(None, publish=_Sender(events), **options)
        self._events = events

    def _open(self, title: str, total: int, done: int, depth: int) -> Bar:
        return _EventBar(self._events, title, total, done, depth)

"""Processes that plan and workers, as they show themselves to one another: files with a beat.

Whether another process still lives is judged by its beat and one's own clock, or at once where it
is known to be gone.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from robustdd_bench.runs.execution.queue.folder import QueueFolder, put
from robustdd_bench.runs.execution.queue.holder import is_gone, this_process

BEAT_S = 2.0
"""Seconds between two signs of life."""
DEAD_S = 60.0
"""Seconds without one after which a process that plans is taken for dead."""

State = Literal["plans", "left", "stopped", "done"]
"""Of a process that plans: "left": it has ended, and its cells may be computed; "stopped": it was
interrupted and may come again; "done": nothing is left to do."""


class Presence:
    """This process, as others see it.

    Args:
        folder: where its file is.
        **fields: what to tell beside host and process.
    """

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.path = folder / f"{self.id}.json"
        self._fields: dict[str, Any] = {**this_process(), "beat": 0, **fields}
        self._told = 0.0

    def tell(self, **fields: Any) -> None:
        """Write the file: something has changed."""
        self._fields |= fields
        self._fields["beat"] += 1
        self._told = time.monotonic()
        with contextlib.suppress(OSError):
            put(self.path, self._fields)

    def add(self, **fields: Any) -> None:
        """Write the file, if that is not told yet."""
        if any(self._fields.get(name) != value for name, value in fields.items()):
            self.tell(**fields)

    def beat(self) -> None:
        """Write the file, if it is time to."""
        if time.monotonic() - self._told >= BEAT_S:
            self.tell()


class Drivers:
    """The processes that plan, as another process sees them.

    Args:
        queue: the queue.
        clock: seconds that never run backwards.
    """

    def __init__(self, queue: QueueFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._clock = queue, clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._alive: set[str] = set()
        self.found: dict[str, dict[str, Any]] = {}
        """Those that live, and those that have left cells, by id."""
        self.ended = False
        """Whether one that was seen alive has nothing left to do, and no other one is alive."""

    def look(self) -> None:
        """Read their files."""
        now, found, done = self._clock(), {}, False
        for name, fields in self._queue.entries(self._queue.drivers):
            state, beat = fields.get("state"), int(fields.get("beat", 0))
            known = self._seen.get(name)
            if known is None or known[0] != beat:
                known = self._seen[name] = (beat, now)
            if state == "left":
                found[name] = fields
            elif state == "plans" and now - known[1] < DEAD_S and not is_gone(fields):
                found[name] = fields
                self._alive.add(name)
            elif state == "done" and name in self._alive:
                done = True
        self.found = found
        self.ended = done and all(one.get("state") == "left" for one in found.values())

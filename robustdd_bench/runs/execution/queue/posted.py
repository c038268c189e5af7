"""What a process that plans hears of the attempts that it listens to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from robustdd_bench.executors import Cell, Job, Receipt
from robustdd_bench.runs.execution.queue.folder import Attempt
from robustdd_bench.runs.execution.queue.holder import described


@dataclass(slots=True)
class Posted:
    """An attempt that is listened to."""

    cell: Cell
    job: Job
    attempt: Attempt
    future: Future[Receipt] | None
    """None: an earlier process posted it, and it has not been asked for."""
    seen: float
    """When its lease has grown last."""
    size: int = 0
    """Of its lease; 0: no worker has it, as far as is known."""
    offset: int = 0
    """Up to where its events were heard."""
    notes: int = 0
    """How many of its notes were heard."""
    kept_notes: int = 0
    """How many of its notes are known to be in the run's log."""
    answered: float | None = None
    """When its answer was seen."""
    bars: set[int] = field(default_factory=set)
    """Its bars that are shown."""

    def hear(self) -> bool:
        """Hand on what the cell has told since the last look; whether that was anything.

        Of an attempt that an earlier process listened to, everything is handed on again: values
        and pictures that are on file are left out there. Of notes that is not known, so how many
        were taken is written down, one look later, when they are in the log.
        """
        if self.notes > self.kept_notes:
            self.kept_notes = self.notes
            self.attempt.keep_notes(self.notes)
        events, self.offset = self.attempt.heard(self.offset)
        for event in events:
            if self._is_new(event):
                self.job.events(self.cell, event)
        return bool(events)

    def _is_new(self, event: Mapping[str, Any]) -> bool:
        """Whether an event is to be handed on."""
        kind = event["event"]
        if kind == "note":
            self.notes += 1
            return self.notes > self.kept_notes
        if kind == "bar":
            self.bars.add(event["bar"])
        elif kind == "close":
            self.bars.discard(event["bar"])
        return True

    def close_bars(self) -> None:
        """End the bars that are shown: nothing more is heard of them."""
        for bar in sorted(self.bars):
            self.job.events(self.cell, {"event": "close", "bar": bar, "finished": False})
        self.bars.clear()


class Refusals:
    """Why workers take no cells, each reason once in the log of each run."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def hear(
        self, driver: str, workers: Iterable[Mapping[str, Any]], posted: Sequence[Posted]
    ) -> None:
        """Write what is new into the logs.

        Args:
            driver: who is refused: the id of this process.
            workers: what workers show of themselves.
            posted: attempts of the runs whose logs are written.
        """
        for fields in workers:
            text = dict(fields.get("refused", {})).get(driver)
            for one in posted if text else ():
                if (one.job.run_id, str(text)) not in self._told:
                    self._told.add((one.job.run_id, str(text)))
                    line = f"{described(fields)} takes no cells: {text}"
                    one.job.events(one.cell, {"event": "log", "text": line})

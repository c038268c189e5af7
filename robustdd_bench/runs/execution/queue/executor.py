"""Cells by workers that others start: `robustdd worker --out DIR`, wherever they like."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import Field

from robustdd_bench.executors import Cell, Executor, Job, Receipt
from robustdd_bench.runs.execution.queue.driver import QueueDriver
from robustdd_bench.text.terminal import say

HINT_S = 20.0
"""Seconds without a worker after which it is said how to start one."""
Slots = Annotated[int, Field(ge=1, le=4096)]
Lease = Annotated[float, Field(ge=10, le=3600)]


class WorkersExecutor(Executor):
    """Cells of a shared folder, by the workers on it."""

    elsewhere = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options."""

        slots: Slots = 64
        """Cells that are offered at once."""
        lease: Lease = 60.0
        """Seconds without a sign of life after which a worker is taken for dead."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._options = self.Config() if config is None else config
        self.slots = self._options.slots
        self._drivers: dict[Path, QueueDriver] = {}
        self._hint: threading.Timer | None = None

    def begin(self, job: Job) -> None:
        """Go on with what workers do already."""
        self._driver(job).begin(job)

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Post the cell."""
        return self._driver(job).submit(cell, job)

    def _driver(self, job: Job) -> QueueDriver:
        out = Path(job.message["out"])
        if out not in self._drivers:
            driver = self._drivers[out] = QueueDriver(out, lease_s=self._options.lease)
            if self._hint is None:
                self._hint = threading.Timer(HINT_S, _hint, [driver])
                self._hint.daemon = True
                self._hint.start()
        return self._drivers[out]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say that all is done; with an exception: cancel what workers have."""
        if self._hint is not None:
            self._hint.cancel()
            self._hint = None
        drivers, self._drivers = list(self._drivers.values()), {}
        for driver in drivers:
            driver.close("done" if error is None else "stopped")


def _hint(driver: QueueDriver) -> None:
    if not driver.taken and driver.demand().waiting:
        say(
            "no worker has taken a cell yet; start some, on any machine that sees the folder: "
            f"robustdd worker --out {driver.queue.out}"
        )

"""A worker: it takes cells from the queue of a folder and computes them in this process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.executors import Cell
from robustdd_bench.guard import plain_text
from robustdd_bench.plugins import Registry
from robustdd_bench.records.patterns import begins, fits
from robustdd_bench.runs.execution.fingerprint import refuse_other
from robustdd_bench.runs.execution.queue.folder import VISIBLE_S, Attempt, QueueFolder
from robustdd_bench.runs.execution.queue.hold import Hold
from robustdd_bench.runs.execution.queue.holder import this_process
from robustdd_bench.runs.execution.queue.presence import Drivers, Presence
from robustdd_bench.runs.execution.worker import KeptWorkers, OtherDataError, failed_answer
from robustdd_bench.text.terminal import duration_text

LEAST_S, MOST_S = 0.2, 2.0
"""Seconds between two looks at the queue."""


class _UnfitError(Exception):
    """This worker cannot compute cells of a run that others can; its text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taste:
    """Which cells a worker takes, and what it computes them with."""

    gpu: bool = False
    """Whether there is a CUDA device."""
    only: tuple[str, ...] = ()
    """Patterns METHOD or METHOD/TRACK, `*` for any text, or the beginnings of run ids; none: all.
    """
    data_root: Path | None = None
    """Where datasets are looked for; None: where the process that plans does."""
    wait_s: float = 600.0
    """How long to wait for a cell."""


class QueueWorker:
    """Takes cells until there are none any more.

    Args:
        out: the folder under which runs and the shared store live.
        registry: the plugins installed here.
        taste: which cells.
        say: takes a line for the user.
    """

    def __init__(
        self, out: Path, registry: Registry, taste: Taste, say: Callable[[str], object]
    ) -> None:
        self._queue, self._taste, self._say = QueueFolder(out), taste, say
        self._kept = KeptWorkers(registry)
        self._drivers = Drivers(self._queue)
        self._presence = Presence(
            self._queue.workers, state="waits", gpu=taste.gpu, cell="", refused={}
        )
        self._taken: set[str] = set()
        self._requests: dict[str, dict[str, Any]] = {}
        self._messages: dict[str, dict[str, Any]] = {}
        self._blocked: dict[str, str] = {}
        self._unfit: dict[str, str] = {}
        self._said: set[str] = set()
        self._swallow = 0
        self.done = 0
        """How many cells were computed."""

    def run(self) -> str:
        """Take and compute cells.

        Returns:
            Why it ended, in words.

        Raises:
            UsageError: every process that plans is refused, because it is installed otherwise or
                has other data.
            KeyboardInterrupt: interrupted; the cell was given back.
        """
        try:
            return self._loop()
        finally:
            if self._queue.workers.is_dir():
                self._presence.tell(state="ended", cell="", refused=self._refusals())

    def _loop(self) -> str:
        since, pause, shown = time.monotonic(), LEAST_S, False
        while True:
            try:
                if self._queue.workers.is_dir():
                    if not shown:
                        shown = True
                        self._presence.tell()
                    self._presence.beat()
                hold = self._next()
                if hold is not None:
                    self._compute(hold)
                    since, pause = time.monotonic(), LEAST_S
                    continue
                if self._drivers.ended:
                    return "the runs have ended"
                if time.monotonic() - since >= self._taste.wait_s:
                    return f"there was nothing to do for {duration_text(self._taste.wait_s)}"
                time.sleep(pause)
                pause = min(MOST_S, 1.3 * pause)
            except KeyboardInterrupt:
                if self._swallow == 0:
                    raise
                self._swallow = 0  # it was for a cell that had just ended

    # --- which cell -------------------------------------------------------------------------

    def _next(self) -> Hold | None:
        """Take the first cell that fits.

        Raises:
            UsageError: see `run`.
        """
        self._drivers.look()
        attempts = self._queue.attempts()
        self._taken &= {attempt.name for attempt in attempts}
        others: set[str] = set()
        blocked: dict[str, str | None] = {}
        for attempt in attempts:
            if attempt.name in self._taken:
                continue
            request = self._request(attempt)
            if request is None or request["driver"] not in self._drivers.found:
                continue
            if attempt.is_taken():
                self._taken.add(attempt.name)
                continue
            why = self._why_not(request)
            unfit = self._unfit.get(request["message"])
            if unfit is None or blocked.setdefault(request["driver"], unfit) is None:
                blocked[request["driver"]] = None
            if why is None and attempt.take(this_process()):
                self._taken.add(attempt.name)
                return Hold(attempt, self._presence)
            if why:
                others.add(why)
        self._blocked = {name: text for name, text in blocked.items() if text is not None}
        self._refuse()
        for why in sorted(others - self._said):
            self._said.add(why)
            self._say(why)
        return None

    def _request(self, attempt: Attempt) -> dict[str, Any] | None:
        if attempt.name not in self._requests:
            request = attempt.request()
            if request is None:
                return None
            if len(self._requests) > 4096:
                self._requests.clear()
            self._requests[attempt.name] = request
        return self._requests[attempt.name]

    def _message(self, digest: str) -> dict[str, Any] | None:
        """The run's message, with the folders of this machine."""
        if digest not in self._messages:
            message = self._queue.message(digest)
            if message is None:
                return None
            message["out"] = str(self._queue.out)
            if self._taste.data_root is not None:
                message["data_root"] = str(self._taste.data_root.absolute())
            self._messages[digest] = message
        return self._messages[digest]

    def _why_not(self, request: Mapping[str, Any]) -> str | None:
        """Why a cell does not fit, "" where that is told elsewhere; None if it does."""
        digest = request["message"]
        if digest in self._unfit:
            return ""
        message = self._message(digest)
        if message is None:
            return ""
        try:
            refuse_other(message["fingerprint"], self._kept.here)
        except RunFailedError as error:
            self._unfit[digest] = str(error)
            return ""
        if request["gpus"] and not self._taste.gpu:
            return "cells wait for a GPU, which this worker does not have"
        if self._taste.only and not _fits(self._taste.only, message["plan"], request["run"]):
            return "cells wait that are left out by --only"
        return None

    def _refusals(self) -> dict[str, str]:
        """Processes that plan whose cells this worker refuses, and why."""
        refused = {}
        for name, fields in self._drivers.found.items():
            try:
                refuse_other(fields.get("fingerprint") or self._kept.here, self._kept.here)
            except RunFailedError as error:
                refused[name] = str(error)
        return {**self._blocked, **refused}

    def _refuse(self) -> None:
        """Tell whom this worker refuses.

        Raises:
            UsageError: that is everybody.
        """
        refused = self._refusals()
        if refused:
            self._presence.add(refused=refused)
        found = self._drivers.found
        if found and found.keys() <= refused.keys():
            raise UsageError(next(iter(refused[name] for name in found)))
        for text in refused.values():
            if text not in self._said:
                self._said.add(text)
                self._say(text)

    # --- computing it -----------------------------------------------------------------------

    def _compute(self, hold: Hold) -> None:
        request = self._requests[hold.attempt.name]
        message, name = self._messages[request["message"]], request["cell"]
        plan = message["plan"]
        what = f"{name} of {plan['method']} {plan['track']['name']} {request['run']}"
        self._presence.tell(state="computes", cell=what)
        start = time.monotonic()
        answer: dict[str, Any]
        try:
            with hold:
                receipt = self._kept.of(message).run(
                    name, hold.tell, lambda cell: _wait_for_inputs(cell, request["inputs_sha256"])
                )
            answer = {"receipt": receipt.model_dump(mode="json")}
            how = f"done in {duration_text(time.monotonic() - start)}"
        except KeyboardInterrupt as interrupt:
            self._kept.forget()
            if hold.unwanted:
                hold.end(returned="it was cancelled")
                self._say(f"{what}: cancelled")
                return
            hold.end(returned="its worker was interrupted")
            raise KeyboardInterrupt(f"interrupted; {what} was given back") from interrupt
        except (_UnfitError, OtherDataError) as error:
            answer = {"returned": str(error)}
            how = f"given back: {error}"
            self._unfit[request["message"]] = str(error)
        except Exception as error:
            answer, how = {"failed": failed_answer(error, name)}, f"failed: {plain_text(error)}"
        self._swallow = int(hold.unwanted)
        if hold.end(**answer):
            self.done += "receipt" in answer
            self._say(f"{what}: {how}")
        self._presence.tell(state="waits", cell="")


def _wait_for_inputs(cell: Cell, planned: str) -> None:
    """Wait until what a cell reads is seen here as it was where the cell was posted.

    Raises:
        _UnfitError: it is not.
    """
    until = time.monotonic() + VISIBLE_S
    while True:
        with contextlib.suppress(OSError):  # it is not seen yet
            if cell.inputs_sha256() == planned:
                return
        if time.monotonic() > until:
            raise _UnfitError(
                f"what {cell.name} reads is another thing here than for the process that planned "
                f"it: is {cell.output.parent} the same folder?"
            )
        for path in cell.inputs:
            with contextlib.suppress(OSError):  # listing asks the server, as NFS goes
                list(path.parent.iterdir())
        time.sleep(1.0)


def _fits(patterns: Sequence[str], plan: Mapping[str, Any], run_id: str) -> bool:
    method, track = plan["method"], plan["track"]["name"]
    return any(begins(p, run_id) or fits(p, method, track) for p in patterns)

"""The process that plans: it posts cells, hears of them, and judges who holds them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import (
    Cell,
    CellFailedError,
    ExecutorEndedError,
    Job,
    Receipt,
    ReturnedCellError,
)
from robustdd_bench.filenames import ANSWER_FILE, LEASE_FILE
from robustdd_bench.runs.execution.link import LostWorkerError
from robustdd_bench.runs.execution.queue.folder import VISIBLE_S, QueueFolder
from robustdd_bench.runs.execution.queue.holder import described, is_gone
from robustdd_bench.runs.execution.queue.posted import Posted, Refusals
from robustdd_bench.runs.execution.queue.presence import DEAD_S, Drivers, Presence, State

LEAST_S, MOST_S = 0.1, 2.0
"""Seconds between two looks at the queue: while things happen, and while nothing does."""
STOP_S = 15.0
"""Seconds in which workers may give back cells that are cancelled."""
PATIENCE = 30
"""How often in turn the queue may be unreadable."""
WORKERS_S = 2.0
"""Seconds between two looks at workers."""


@dataclass(frozen=True, slots=True)
class Demand:
    """How much there is to do."""

    waiting: int
    """Cells that no worker has."""
    held: int
    """Cells that workers have."""


class QueueDriver:
    """Cells of this process in the queue of a folder.

    Args:
        out: the folder.
        lease_s: seconds without a sign of life after which a worker is taken for dead.
        gone: says why the holder of a lease is known to be gone, else ""; it gets the holder and
            when, by the monotonic clock, the lease has grown last.
    """

    def __init__(
        self,
        out: Path,
        *,
        lease_s: float,
        gone: Callable[[Mapping[str, Any], float], str] = lambda holder, seen: "",
    ) -> None:
        self.queue = QueueFolder(out)
        self._lease_s, self._gone = lease_s, gone
        self._numbers = itertools.count()
        self._posted: dict[str, Posted] = {}
        self._failure: ExecutorEndedError | None = None
        self._refusals = Refusals()
        self._lock = threading.RLock()
        self._wake, self._stop = threading.Event(), False
        self._looked = 0.0
        self.taken = False
        """Whether a worker has ever taken a cell."""
        self.queue.make()
        self._tidy()
        self._presence = Presence(self.queue.drivers, state="plans", fingerprint={})
        self._drivers = Drivers(self.queue)
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="queue", daemon=True)
        self._presence.tell()
        self._thread.start()

    @property
    def id(self) -> str:
        """Of this process, in the queue."""
        return self._presence.id

    def begin(self, job: Job) -> None:
        """Hear what workers did for a run while no process listened, and go on with what they do.

        Attempts that none has taken, and those for another message, that is with another
        installation, are removed.
        """
        with self._lock:
            self._say_who(job)
            digest = self.queue.keep_message(job.message)
            for attempt in self.queue.attempts():
                request = attempt.request()
                if request is None or request["run"] != job.run_id:
                    continue
                if attempt.name in {one.attempt.name for one in self._posted.values()}:
                    continue
                answer = attempt.answer()
                useful = attempt.is_taken() if answer is None else "receipt" in answer
                useful = useful and request["message"] == digest
                if not useful or attempt.key in self._posted:
                    self.queue.remove(attempt)
                    continue
                name = request["cell"]
                cell = Cell(stage=name.partition("/")[0], name=name, output=Path())
                one = Posted(cell, job, attempt, None, time.monotonic())
                one.kept_notes = attempt.notes()
                self._posted[attempt.key] = one
                if answer is not None:
                    self._look_at(one)
        self._wake.set()

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Post a cell, or listen on to an attempt that an earlier process posted.

        Raises:
            RunFailedError: the queue cannot be written.
        """
        future: Future[Receipt] = Future()
        future.set_running_or_notify_cancel()
        try:
            with self._lock:
                self._say_who(job)
                digest = self.queue.keep_message(job.message)
                key = _key(job, cell, digest)
                one = self._posted.get(key)
                if one is not None and one.future is None:
                    one.cell, one.job, one.future = cell, job, future
                else:
                    request = self._request(cell, job, digest)
                    attempt = self.queue.post(next(self._numbers), key, request)
                    one = Posted(cell, job, attempt, future, time.monotonic())
                    self._posted[key] = one
        except OSError as error:
            raise RunFailedError(
                f"cannot write {self.queue.root}: {error.strerror or error}"
            ) from error
        self._wake.set()
        return future

    def _request(self, cell: Cell, job: Job, digest: str) -> dict[str, Any]:
        return {
            "message": digest,
            "driver": self.id,
            "run": job.run_id,
            "cell": cell.name,
            "gpus": cell.resources.gpus,
            "threads": cell.resources.threads,
            "inputs_sha256": cell.inputs_sha256(),
        }

    def _say_who(self, job: Job) -> None:
        """Tell workers what is installed here, so that others need not load anything to refuse."""
        if self._failure is not None:
            raise self._failure
        self._presence.add(fingerprint=job.message["fingerprint"])

    def demand(self) -> Demand:
        """How much there is to do now."""
        with self._lock:
            held = sum(one.size > 0 for one in self._posted.values())
            return Demand(len(self._posted) - held, held)

    def workers(self) -> dict[str, dict[str, Any]]:
        """The workers that have shown themselves, also those that have ended."""
        return dict(self.queue.entries(self.queue.workers))

    def others(self) -> bool:
        """Whether another process plans cells of this folder."""
        return any(
            fields.get("state") == "plans"
            for name, fields in self._drivers.found.items()
            if name != self.id
        )

    def fail(self, error: ExecutorEndedError) -> None:
        """End all runs."""
        with self._lock:
            self._failure = error
            futures = [one.future for one in self._posted.values() if one.future is not None]
            self._remove_all()
        for future in futures:
            future.set_exception(error)

    def close(self, state: State) -> None:
        """Leave the queue.

        Args:
            state: "left": what was posted stays; else it is cancelled.
        """
        if state != "left":
            self._cancel()
        self._stop = True
        self._wake.set()
        self._thread.join()
        if state == "left":
            self._presence.tell(state=state)
            return
        with self._lock:
            self._remove_all()
        self._presence.tell(state=state)
        if state == "done" and self._alone():
            for attempt in self.queue.attempts():
                self.queue.remove(attempt)
            self.queue.sweep()

    def _cancel(self) -> None:
        """Ask for cells back, and wait a little; a second Ctrl-C does not."""
        with self._lock:
            for one in list(self._posted.values()):
                if not one.attempt.is_taken():
                    self._end(one, LostWorkerError("it was cancelled"))
                else:
                    one.attempt.cancel()
        self._wake.set()
        until = time.monotonic() + STOP_S
        with contextlib.suppress(KeyboardInterrupt):
            while self._posted and self._thread.is_alive() and time.monotonic() < until:
                time.sleep(0.05)

    def _alone(self) -> bool:
        """Whether no other process can be using the queue."""
        self._drivers.look()
        others = self._drivers.found.keys() - {self.id}
        return not others and (
            time.monotonic() - self._began > DEAD_S
            or all(
                is_gone(fields) or fields.get("state") != "plans"
                for name, fields in self.queue.entries(self.queue.drivers)
                if name != self.id
            )
        )

    def _tidy(self) -> None:
        """Delete the files of processes that have ended and have left nothing."""
        queue = self.queue
        requests = [attempt.request() for attempt in queue.attempts()]
        posting = {request["driver"] for request in requests if request}
        for name, fields in queue.entries(queue.drivers):
            if name not in posting and (fields.get("state") != "plans" or is_gone(fields)):
                (queue.drivers / f"{name}.json").unlink(missing_ok=True)
        for name, fields in queue.entries(queue.workers):
            if fields.get("state") == "ended" or is_gone(fields):
                (queue.workers / f"{name}.json").unlink(missing_ok=True)

    def _watch(self) -> None:
        pause, failures = LEAST_S, 0
        while not self._stop:
            if self._wake.wait(pause):
                self._wake.clear()
                pause = LEAST_S
            try:
                changed = self._look()
                failures = 0
            except OSError as error:
                failures += 1
                if failures > PATIENCE:
                    why = f"cannot read {self.queue.root}: {error.strerror or error}"
                    self.fail(ExecutorEndedError(why))
                    return
                changed = False
            except Exception as error:  # nothing waits for ever
                self.fail(ExecutorEndedError(f"the queue cannot be followed: {error!r}"))
                return
            pause = LEAST_S if changed else min(MOST_S, 1.3 * pause)

    def _look(self) -> bool:
        self._presence.beat()
        with self._lock:
            posted = list(self._posted.values())
        changed = False
        for one in posted:
            with self._lock:
                if self._posted.get(one.attempt.key) is one:
                    changed |= self._look_at(one)
        now = time.monotonic()
        if now - self._looked >= WORKERS_S:
            self._looked = now
            self._drivers.look()
            with self._lock:
                posted = list(self._posted.values())
            self._refusals.hear(self.id, self.workers().values(), posted)
        return changed

    def _look_at(self, one: Posted) -> bool:
        """Whether something has happened to an attempt since the last look."""
        now, files = time.monotonic(), one.attempt.files()
        if files is None:
            self._end(one, LostWorkerError("it was removed from the queue"))
            return True
        if LEASE_FILE not in files:
            return False
        answer = one.attempt.answer() if ANSWER_FILE in files else None
        changed = one.hear()
        if answer is not None:
            self._settle(one, answer, now)
            return True
        holder, size = one.attempt.lease()
        if size != one.size:
            self.taken = True
            one.size, one.seen, changed = size, now, True
        why = self._why_gone(holder, one.seen)
        if why and one.attempt.answer() is None:
            self._end(one, LostWorkerError(why))
            return True
        return changed

    def _why_gone(self, holder: Mapping[str, Any] | None, seen: float) -> str:
        who = described(holder or {})
        if holder is not None and is_gone(holder):
            return f"the worker has ended ({who})"
        known = self._gone(holder, seen) if holder is not None else ""
        if known:
            return f"{known} ({who})"
        if time.monotonic() - seen > self._lease_s:
            return f"the worker has given no sign of life for {self._lease_s:g} s ({who})"
        return ""

    def _settle(self, one: Posted, answer: Mapping[str, Any], now: float) -> None:
        """A worker has answered."""
        if "failed" in answer:
            self._end(one, CellFailedError(**answer["failed"]))
        elif "returned" in answer:
            self._end(one, ReturnedCellError(answer["returned"]))
        else:
            one.answered = now if one.answered is None else one.answered
            late = now - one.answered > VISIBLE_S
            if one.future is not None and one.cell.receipt() is None and not late:
                with contextlib.suppress(OSError):  # listing asks the server, as NFS goes
                    list(one.cell.output.parent.iterdir())
                return
            try:
                receipt = Receipt.model_validate(answer["receipt"])
            except ValueError as error:
                self._end(one, LostWorkerError(f"its answer cannot be read: {error}"))
                return
            self._end(one, receipt)

    def _end(self, one: Posted, result: Receipt | Exception) -> None:
        """An attempt is over."""
        one.hear()
        if one.future is None:
            one.close_bars()
        self._posted.pop(one.attempt.key, None)
        self.queue.remove(one.attempt)
        if one.future is None:
            return
        if isinstance(result, Receipt):
            one.future.set_result(result)
        else:
            one.future.set_exception(result)

    def _remove_all(self) -> None:
        for one in list(self._posted.values()):
            self.queue.remove(one.attempt)
        self._posted.clear()


def _key(job: Job, cell: Cell, digest: str) -> str:
    return hashlib.sha256(f"{job.run_id} {cell.bound} {digest}".encode()).hexdigest()[:24]

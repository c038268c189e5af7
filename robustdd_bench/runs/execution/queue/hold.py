"""A cell that a worker has taken, while it computes it: the lease beats, events are written."""

from __future__ import annotations

import _thread
import contextlib
import errno
import json
import signal
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from robustdd_bench.errors import RunFailedError
from robustdd_bench.runs.execution.limits import AGAIN_S
from robustdd_bench.runs.execution.queue.folder import Attempt
from robustdd_bench.runs.execution.queue.presence import BEAT_S, Presence

WRITE_S = 0.2
"""Seconds for which events are collected."""
RARE = ("images", "note")
"""Events that are written at once: a resumed cell may not tell them again."""
_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)


class Hold:
    """A taken attempt; a context manager around the work on it.

    The work is interrupted, as by Ctrl-C, when the attempt is cancelled or removed.

    Args:
        attempt: what was taken.
        presence: the worker's, which beats too.
    """

    def __init__(self, attempt: Attempt, presence: Presence) -> None:
        self.attempt, self._presence = attempt, presence
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self.unwanted = False
        """Whether nobody waits for the cell any more."""
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._main = threading.get_ident()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The work is over: it is not interrupted from now on."""
        with self._lock:
            self._ended.set()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take an event of the cell."""
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._lines.append(line)
        if event["event"] in RARE:
            with contextlib.suppress(OSError):  # the next attempt to write is soon
                self._write()

    def end(self, **answer: Any) -> bool:
        """Write what was told and the answer.

        Returns:
            Whether somebody still wants it.

        Raises:
            RunFailedError: it cannot be written.
        """
        self._ended.set()
        self._thread.join()
        try:
            self._write()
            self.attempt.end(answer)
        except OSError as error:
            if error.errno in _GONE:
                return False
            where = self.attempt.path
            raise RunFailedError(f"cannot write {where}: {error.strerror or error}") from error
        return True

    def _beat(self) -> None:
        count, waited = 0, 0.0
        while not self._ended.wait(WRITE_S):
            waited += WRITE_S
            try:
                self._write()
                if waited >= BEAT_S:
                    count, waited = count + 1, 0.0
                    self._presence.beat()
                    if not self.attempt.beat(count):
                        break
            except OSError as error:
                if error.errno in _GONE:
                    break
                # A full disk, say: if it lasts, the process that plans takes this one for dead.
        while not self._ended.is_set():
            with self._lock:
                if not self._ended.is_set():
                    self.unwanted = True
                    if hasattr(signal, "pthread_kill"):
                        signal.pthread_kill(self._main, signal.SIGINT)
                    else:
                        _thread.interrupt_main()
            self._ended.wait(AGAIN_S)

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                lines, self._lines = self._lines, []
            if not lines:
                return
            try:
                self.attempt.tell(b"".join(lines))
            except OSError as error:
                with self._lock:
                    if error.errno not in _GONE:
                        self._lines = lines + self._lines
                raise

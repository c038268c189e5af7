"""Whether Ctrl-C was pressed: a KeyboardInterrupt without it is a plugin's own.

For the length of a plugin's call the handler of SIGINT also counts. While a guard puts things back
it is held up, so that nothing is left half-way.
"""

from __future__ import annotations

import signal
import threading
from typing import Any


class _Interrupts:
    """The count of SIGINT, and the handler that does the counting."""

    def __init__(self) -> None:
        self.count = 0
        self._inside: Any = None
        self._held = 0
        self._waiting: tuple[int, Any] | None = None

    def handle(self, number: int, frame: Any) -> Any:
        """Count, then do what the process does at Ctrl-C."""
        self.count += 1
        if self._held:
            self._waiting = (number, frame)
            return None
        return self._inside(number, frame)

    def hold(self) -> None:
        """Keep Ctrl-C waiting."""
        self._held += 1

    def let_go(self) -> None:
        """Let through what has waited."""
        self._held -= 1
        if not self._held and self._waiting is not None:
            waited, self._waiting = self._waiting, None
            handler = self._inside
            if callable(handler):
                handler(*waited)

    def watch(self) -> Any:
        """Take the place of the handler; what to give to `unwatch`, None where nothing was done."""
        if threading.current_thread() is not threading.main_thread():
            return None
        before = signal.getsignal(signal.SIGINT)
        if not callable(before) or before == self.handle:
            return None
        outer, self._inside = self._inside, before
        signal.signal(signal.SIGINT, self.handle)
        return (before, outer)

    def unwatch(self, watched: Any) -> None:
        """Put the handler back."""
        if watched is None:
            return
        before, outer = watched
        signal.signal(signal.SIGINT, before)
        if outer is not None:  # else it stays known, for a Ctrl-C that still waits
            self._inside = outer

    def unsure(self) -> bool:
        """Whether a KeyboardInterrupt may be the user's though none was counted."""
        if threading.current_thread() is not threading.main_thread():
            return False
        handler = signal.getsignal(signal.SIGINT)
        return handler != self.handle and callable(handler)


INTERRUPTS = _Interrupts()

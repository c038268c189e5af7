"""Progress bars, whatever shows them."""

from __future__ import annotations

import abc
from collections.abc import Callable


class Bar(abc.ABC):
    """A progress bar, or what stands for it."""

    def __init__(self, title: str, total: int, done: int, depth: int) -> None:
        self.title, self.total, self.done, self.depth = title, total, done, depth
        self.cell = ""
        """The cell whose it is."""
        self.resumed = 0
        """Steps that were done when it began."""

    def moved(self, steps: int) -> None:
        """Count steps; several at the very beginning were done before."""
        if steps > 1 and not self.done:
            self.resumed = steps
        self.done += steps

    @abc.abstractmethod
    def advance(self, steps: int = 1) -> None:
        """Move on by `steps`."""

    @abc.abstractmethod
    def close(self, *, finished: bool) -> None:
        """End it; `finished` is false where an exception ended it."""


class Pulsing:
    """A bar that also calls a function at each step."""

    def __init__(self, bar: Bar, pulse: Callable[[], object]) -> None:
        self._bar, self._pulse = bar, pulse

    def advance(self, steps: int = 1) -> None:
        """Move on by `steps`."""
        self._bar.advance(steps)
        self._pulse()

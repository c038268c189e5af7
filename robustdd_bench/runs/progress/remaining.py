"""How long a run will still take, from what its cells are expected to take and what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from robustdd_bench.runs.progress.bars import Bar
from robustdd_bench.text.terminal import duration_text

PRIOR_S = 20.0
"""So many seconds count as spent at the expected rate, until more is known."""


def share(bar: Bar) -> float:
    """How much of its steps a bar has done, in [0,1]."""
    return min(1.0, bar.done / bar.total) if bar.total > 0 else 0.0


class Remaining:
    """What is left of a run.

    Args:
        seconds: what the cells that are not done are expected to take, by name. A common factor
            does not matter for long: the rate at which they are done is measured.
        clock: seconds that never run backwards.
    """

    def __init__(self, seconds: Mapping[str, float], clock: Callable[[], float]) -> None:
        self._left = dict(seconds)
        self._clock = clock
        self._start = clock()
        self._done = 0.0
        self._resumed: dict[str, float] = {}

    def finished(self, cell: str) -> None:
        """A cell is done."""
        seconds = self._left.pop(cell, 0.0)
        self._done += seconds * (1.0 - self._resumed.pop(cell, 0.0))

    def _now(self, bars: Iterable[Bar]) -> tuple[float, float, float]:
        """Expected seconds of what was done in this call, was done before it, and is left."""
        done, before, left = self._done, 0.0, sum(self._left.values())
        seen: set[str] = set()
        for bar in bars:  # of a cell with several, the outermost is the first
            if bar.cell in seen or bar.cell not in self._left or bar.total <= 0:
                continue
            seen.add(bar.cell)
            resumed = min(1.0, bar.resumed / bar.total)
            self._resumed[bar.cell] = resumed
            seconds = self._left[bar.cell]
            done += seconds * (share(bar) - resumed)
            before += seconds * resumed
            left -= seconds * share(bar)
        return done, before, left

    def seconds(self, bars: Iterable[Bar]) -> float:
        """What is left, in seconds of the clock.

        Args:
            bars: that are open, the outermost first.
        """
        done, _, left = self._now(bars)
        spent = self._clock() - self._start
        return left * (spent + PRIOR_S) / (done + PRIOR_S)

    def share(self, bars: Iterable[Bar]) -> float:
        """How much of the run is done, in [0,1], of what was left when this call began."""
        done, before, left = self._now(bars)
        whole = done + before + left
        return (done + before) / whole if whole > 0 else 1.0

    def text(self, bars: Iterable[Bar]) -> str:
        """What is left, for people, e.g. "about 12 min left, until 14:32"; "" if unknown."""
        if not self._left and not self._done:
            return ""
        seconds = self.seconds(bars)
        if seconds < 1:  # sanity checks and files, which nothing is expected of, take their moment
            return "nearly done"
        end = time.localtime(time.time() + seconds)
        day = "" if seconds < 20 * 3600 else time.strftime("%a %d %b ", end)
        return f"about {duration_text(seconds)} left, until {day}{time.strftime('%H:%M', end)}"

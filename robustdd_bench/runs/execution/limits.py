"""A limit of time: nothing is begun that cannot be expected to end, and what runs is interrupted.

What a cell takes is known from cells like it: of the same attack on other students, of the same
stage. A distillation resumes from its checkpoint, so it is begun whatever it takes.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping

from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.executors import Cell, Receipt

GRACE_S = 15.0
"""Seconds before the limit at which what runs is interrupted; a tenth of a short limit."""
AGAIN_S = 5.0
"""Seconds between two interruptions of what does not end."""
LEAST_S = 60.0
"""Seconds without which nothing is begun whose time is not known; a tenth of a short limit."""
MOST_S = 366 * 24 * 3600
SHARE = 0.5
"""Of the seconds counted from operations, which are right within a factor of about two: what would
fit is not left."""
RESUMES = "distill"
"""The stage whose cell goes on where it was interrupted."""


class TimeLimitError(RobustDDError):
    """The time is up. Nothing is wrong: the same command resumes."""

    exit_code = 0


class LimitReached(BaseException):
    """Nothing can be begun any more, or what runs was interrupted. Its text may say why."""


class TimeLimit:
    """Seconds from now on.

    Args:
        seconds: how many.
        clock: seconds that never run backwards.

    Raises:
        UsageError: they are not positive, or more than a year.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 < seconds <= MOST_S:
            raise UsageError(
                f"the time limit must be above 0 and at most {MOST_S} seconds (a year), not "
                f"{seconds:g}"
            )
        self.seconds = seconds
        self._clock = clock
        self._grace_s = min(GRACE_S, seconds / 10)
        self._stop = clock() + seconds - self._grace_s
        self._least_s = min(LEAST_S, seconds / 10)

    def left_s(self) -> float:
        """Seconds until what runs is interrupted; 0 afterwards."""
        return max(0.0, self._stop - self._clock())

    def allows(self, cell: Cell) -> bool:
        """Whether a cell may be begun now."""
        left_s = self.left_s()
        if cell.resources.seconds is None or cell.stage == RESUMES:
            return left_s > self._least_s
        return left_s > cell.resources.seconds

    def pulse(self) -> None:
        """Interrupt what runs, if the time is up: at a step of a loop nothing is left half-way."""
        if self.left_s() <= 0 and threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Interrupt what runs within, in this process, when the time is up.

        What reports its steps is interrupted by `pulse`, anything else a little later wherever it
        is, and again should an interruption be lost, as in a finaliser. Only the main thread can be
        interrupted; in another one, what runs goes on to its end.

        Raises:
            LimitReached: it was.
        """
        main = threading.main_thread()
        if threading.current_thread() is not main:
            yield
            return
        before = signal.getsignal(signal.SIGINT)
        if before in (signal.SIG_IGN, signal.SIG_DFL, None):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        done = threading.Event()

        def watch() -> None:
            wait_s = self.left_s() + min(AGAIN_S, self._grace_s / 2)
            while not done.wait(wait_s):
                wait_s = AGAIN_S
                if hasattr(signal, "pthread_kill"):  # wakes a main thread that waits for something
                    signal.pthread_kill(main.ident or 0, signal.SIGINT)
                else:
                    _thread.interrupt_main()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            done.set()
            watcher.join()
        except KeyboardInterrupt as interrupt:
            if self.left_s() <= 0:
                raise LimitReached("") from interrupt
            raise
        finally:
            done.set()
            if before in (signal.SIG_IGN, signal.SIG_DFL):
                signal.signal(signal.SIGINT, before)


class Times:
    """What cells took and how much memory they had, for those like them."""

    def __init__(self) -> None:
        self._counted: dict[str, Mapping[tuple[str, str | None], float]] = {}
        self._seen: dict[Hashable, list[Receipt]] = defaultdict(list)

    def add(self, run: str, cell: Cell, receipt: Receipt) -> None:
        """Remember a cell.

        Args:
            run: what runs have in common whose cells cost the same.
            cell: the cell.
            receipt: its receipt.
        """
        self._seen[run, cell.stage, cell.attack].append(receipt)

    def count(self, run: str, seconds: Mapping[tuple[str, str | None], float]) -> None:
        """Remember what cells take by their operations: stage and attack to seconds a student."""
        self._counted[run] = seconds

    def of(self, run: str, cell: Cell) -> Cell:
        """The cell with what it is expected to take."""
        seen = self._seen.get((run, cell.stage, cell.attack))
        if not seen:
            each = self._counted.get(run, {}).get((cell.stage, cell.attack))
            if each is None:
                return cell
            seconds = SHARE * each * max(1, len(cell.students))
            resources = dataclasses.replace(cell.resources, seconds=seconds)
            return dataclasses.replace(cell, resources=resources)
        expected = dataclasses.replace(
            cell.resources,
            seconds=sum(receipt.wall_s for receipt in seen) / len(seen),
            memory_bytes=max(receipt.peak_bytes for receipt in seen),
        )
        return dataclasses.replace(cell, resources=expected)

"""Processes and threads that an executor starts: which they are, which works, and what stays.

A process is the executor's if it descends from this one, or has the variable that `marked` sets in
its environment: a daemon that has left its parent has it too. Linux alone tells (`/proc`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PROC = Path("/proc")
MARK = "ROBUSTDD_CHECK"
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Processes of Python's own, which end with this one."""
BUSY = 0.2
"""Share of a core that a process which computes has at least, on a machine that is busy too."""


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """Within, processes that are started inherit a mark of their own; yields it."""
    mark, before = uuid.uuid4().hex, os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield mark
    finally:
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def can_watch() -> bool:
    """Whether this system tells of processes."""
    return (PROC / "self" / "stat").is_file()


def started(mark: str) -> set[int]:
    """The processes that were started under a mark or descend from this one, and are alive."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    wanted = f"{MARK}={mark}".encode()
    for entry in PROC.iterdir() if can_watch() else ():
        if not entry.name.isdecimal():
            continue
        try:
            state, parent = _stat(entry)[:2]
            if state == "Z":
                continue
            pid = int(entry.name)
            parents[pid] = int(parent)
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:  # it has ended, or is another user's
            continue
    ours = {os.getpid()}
    while True:
        further = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not further:
            break
        ours |= further
    found |= ours
    found.discard(os.getpid())
    return {pid for pid in found if not any(helper in _command(pid) for helper in HELPERS)}


def busiest(mark: str, seconds: float = 0.25) -> int | None:
    """The process of `started` that computes; None where none does.

    Args:
        mark: see `marked`.
        seconds: how long they are watched.
    """
    before = {pid: _cpu_s(pid) for pid in started(mark)}
    time.sleep(seconds)
    spent = {pid: _cpu_s(pid) - then for pid, then in before.items()}
    most = max(spent, key=lambda pid: spent[pid], default=None)
    return most if most is not None and spent[most] >= BUSY * seconds else None


def left(mark: str, before: set[int], threads: set[threading.Thread], grace_s: float) -> list[str]:
    """What is still there after a time of grace: processes by command, threads by name.

    Args:
        mark: see `marked`.
        before: processes that were there before.
        threads: threads that were there before.
        grace_s: seconds in which they may end.
    """

    def there() -> list[str]:
        processes = [f"process {pid} ({_command(pid)[:60]})" for pid in started(mark) - before]
        names = [f"thread {one.name!r}" for one in threading.enumerate() if one not in threads]
        return [*processes, *names]

    waited(lambda: not there(), grace_s)
    return there()


def waited(until: Callable[[], bool], seconds: float) -> bool:
    """Wait for something, at most so many seconds; whether it has come."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def kill(pids: set[int]) -> None:
    """Kill processes that are left over."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _stat(folder: Path) -> list[str]:
    """The fields of `/proc/PID/stat` after the name: state, parent and so on."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    try:
        fields = _stat(PROC / str(pid))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        text = (
            (PROC / str(pid) / "cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
        return " ".join(text.split())
    return ""

"""Where a plugin's output goes: to stderr, since stdout is data.

`sys.stdout` is replaced for the length of a call, and so is what lies below it: file descriptor 1,
which subprocesses, libraries in C and `sys.__stdout__` write to.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable
from typing import Any


class _Binary(io.RawIOBase):
    """What `sys.stdout.buffer` is: bytes that go where the text goes."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        TALK.write(content.decode("utf-8", errors="backslashreplace"))
        return len(content)


class _Talk(io.TextIOBase):
    """A `sys.stdout` whose text goes to whatever `sys.stderr` is when it is written."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> Any:
        return _Binary()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def write(self, text: str) -> int:
        stream = sys.stderr
        if stream is not None and stream is not self:
            # A stderr that is gone is no reason for a run to fail.
            with contextlib.suppress(OSError, ValueError):
                stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if sys.stderr is not None and sys.stderr is not self:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()

    def close(self) -> None:
        return

    def detach(self) -> Any:
        return self.buffer

    def reconfigure(self, **_: Any) -> None:
        return


TALK = _Talk()


def _flush(*streams: Any) -> None:
    for stream in streams:
        if stream is not None and stream is not TALK:
            # Broken pipes and full disks show again where the harness writes its own data.
            with contextlib.suppress(Exception):
                stream.flush()


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Streams:
    """Stdout and stderr from the start of a plugin's call to its end.

    Args:
        aside: send what is written to stdout to stderr.
    """

    def __init__(self, aside: bool) -> None:
        self._aside = aside
        self._stdout = sys.stdout
        self._saved: list[int | None] = [None, None]
        self._before: list[tuple[int, int] | None] = [None, None]
        # Inside another guard that sends output aside, this is done.
        self._whole = sys.stdout is not TALK
        if not self._whole:
            return
        if aside:
            _flush(sys.stdout, sys.__stdout__)
        for i in (0, 1):
            with contextlib.suppress(OSError):
                self._saved[i] = os.dup(i + 1)
                self._before[i] = _identity(i + 1)
        if aside:
            sys.stdout = TALK
            self._divert()

    def _divert(self) -> None:
        if self._saved[0] is None:
            return
        with contextlib.suppress(OSError):
            if self._saved[1] is not None:
                os.dup2(2, 1)
            else:  # stderr is closed
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 1)
                os.close(nothing)
        self._before[0] = _identity(1)

    def restore(self) -> list[str]:
        """Put both back; the names of those that the plugin had changed."""
        expected = TALK if self._aside or not self._whole else self._stdout
        changed = ["sys.stdout"] if sys.stdout is not expected else []
        if self._whole:
            if self._aside:
                _flush(self._stdout, sys.__stdout__)  # what was written past TALK
            for i, name in enumerate(("stdout", "stderr")):
                saved = self._saved[i]
                if saved is None:
                    continue
                if _identity(i + 1) != self._before[i]:
                    changed.append(f"the file descriptor of {name}")
                with contextlib.suppress(OSError):
                    os.dup2(saved, i + 1)
                with contextlib.suppress(OSError):
                    os.close(saved)
        sys.stdout = self._stdout
        return changed

"""What a stream can show, and text that is safe to show on it."""

from __future__ import annotations

import os
from typing import IO

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), " ")


def one_line(text: object, limit: int = 600) -> str:
    """The text on one line, without control characters, cut off at `limit` characters."""
    line = " ".join(str(text).translate(_CONTROL).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream can show colours and moving bars."""
    if stream is None or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # a closed stream
        return False


def no_colour() -> bool:
    """Whether the user set NO_COLOR (to anything but an empty text)."""
    return bool(os.environ.get("NO_COLOR"))


def size_text(count: int) -> str:
    """A number of bytes as people read it, e.g. "6.5 GiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"

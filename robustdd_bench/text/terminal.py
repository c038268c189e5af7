"""What a stream can show, and text that is safe to show on it."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import IO, Any

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), " ")


def one_line(text: object, limit: int = 600) -> str:
    """The text on one line, without control characters, cut off at `limit` characters."""
    line = " ".join(str(text).translate(_CONTROL).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def hides(character: str) -> bool:
    """Whether a character controls or turns what stands around it instead of being seen."""
    return character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Cs")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream can show colours and moving bars."""
    if stream is None or os.environ.get("TERM") == "dumb":
        return False
    try:
        return bool(stream.isatty())
    except (ValueError, AttributeError):  # closed; an object with write and flush alone
        return False


_drawn: list[Any] = []
"""rich's displays that are drawn again and again at the moment."""


@contextlib.contextmanager
def drawing(display: Any) -> Iterator[None]:
    """Within, a display of rich is drawn again and again on stderr; see `say` and `still`.

    Args:
        display: a `rich.live.Live` or `rich.progress.Progress`.
    """
    _drawn.append(display)
    try:
        yield
    finally:
        _drawn.remove(display)


def say(text: object) -> None:
    """Print a line on stderr, above what is drawn there; a stderr that is gone is no error."""
    line = one_line(text)
    try:
        if _drawn:
            _drawn[-1].console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


@contextlib.contextmanager
def still() -> Iterator[None]:
    """Within, nothing is drawn, so that a question can be asked on the terminal."""
    displays = list(_drawn)
    _drawn.clear()
    for display in displays:
        display.stop()
    try:
        yield
    finally:
        for display in displays:
            display.start()
        _drawn.extend(displays)


def no_colour() -> bool:
    """Whether the user set NO_COLOR (to anything but an empty text)."""
    return bool(os.environ.get("NO_COLOR"))


def duration_text(seconds: float) -> str:
    """A time as people read it, e.g. "1.7 min" or "2 h 05 min"."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.1f} min" if seconds < 597 else f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24:02} h"


def rate_text(per_second: float, unit: str) -> str:
    """A throughput, e.g. "12,345 images/s"; three digits below a hundred."""
    value = f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
    return f"{value} {unit}/s"


def size_text(count: int) -> str:
    """A number of bytes as people read it, e.g. "6.5 GiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def number_text(value: float) -> str:
    """A number as short as it can be told."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:g}"

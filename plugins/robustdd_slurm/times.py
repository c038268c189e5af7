"""Limits of time as sbatch takes them."""

from __future__ import annotations

import re

_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
MOST_MINUTES = 366 * 24 * 60


def minutes_of(time: int | str) -> int:
    """The minutes of a limit of time, rounded up.

    Args:
        time: minutes, or what sbatch takes: "minutes", "minutes:seconds",
            "hours:minutes:seconds", "days-hours", "days-hours:minutes" or
            "days-hours:minutes:seconds".

    Raises:
        ValueError: it is none, or not between a minute and a year.
    """
    found = _CLOCK.fullmatch(str(time).strip())
    if found is None:
        raise ValueError(
            f"time must be minutes, or as in 04:00:00 or 1-12:00:00 (days-hours:minutes:seconds), "
            f"not {time!r}"
        )
    days, *parts = (None if part is None else int(part) for part in found.groups())
    given = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*given, 0, 0)[:3]
    elif len(given) == 3:
        hours, minutes, seconds = given
    else:
        hours, minutes, seconds = 0, *(*given, 0)[:2]
    total = ((days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    whole = -(-total // 60)
    if not 1 <= whole <= MOST_MINUTES:
        raise ValueError(f"time must lie between a minute and a year, not {time!r}")
    return whole

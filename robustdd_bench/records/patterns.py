"""Which runs `--only` means: METHOD or METHOD/TRACK, `*` for any text, or the start of a run id."""

from __future__ import annotations

import fnmatch

SHORTEST_ID = 6
"""Digits of a run id that a pattern must have at least."""


def fits(pattern: str, method: str, track: str) -> bool:
    """Whether a pattern METHOD or METHOD/TRACK, `*` for any text, means the runs of both."""
    wanted, slash, where = pattern.partition("/")
    return fnmatch.fnmatchcase(method, wanted) and (not slash or fnmatch.fnmatchcase(track, where))


def begins(pattern: str, run_id: str) -> bool:
    """Whether a pattern is the start of a run id, and long enough to be meant as one."""
    return len(pattern) >= SHORTEST_ID and run_id.startswith(pattern)

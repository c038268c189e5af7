"""Names of registered things that would collide with something else, and why."""

from __future__ import annotations

import re

from robustdd_bench.filenames import RECORD_FILE, is_toml

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names become parts of paths: of a run's folder, of files in it, of places on the board."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_RESERVED = {
    ("distillers", "given"): "it is the method of sets that `robustdd evaluate FILE` is given",
    ("tracks", "store"): "runs/store is the folder that all runs share",
    ("tracks", RECORD_FILE): "--track takes it for the record of a run",
}


def refusal(kind: str, name: str) -> str | None:
    """Why nothing of that kind can be called so, as the rest of a sentence; None where it can.

    Args:
        kind: of `robustdd_bench.plugins.KINDS`.
        name: the name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        return (
            "must be made of letters, digits, '.', '_' and '-', begin with a letter or digit, "
            "and be no longer than 64 characters"
        )
    reason = _RESERVED.get((kind, name.lower()))
    if reason is not None:
        return f"is reserved: {reason}"
    if kind == "tracks" and is_toml(name):
        return "is reserved: --track takes what ends in .toml for a file"
    if kind == "attacks" and name.endswith("-0"):
        return (
            "is reserved: the outcomes of 'x-0' on student 4 would be in the file of 'x' on "
            "students 0 to 4"
        )
    if _DEVICES.fullmatch(name):
        return "is reserved: Windows knows no folder of that name"
    if name.endswith("."):
        return "is reserved: Windows drops the last '.' of a folder's name"
    return None

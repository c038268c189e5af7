"""What rows of one method are called: by their presets, and by the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robustdd_bench.records.settings import differing_settings, setting_text

FEW = 3
"""Settings that a name may have; beyond them the end of the row's id stands there."""
LONGEST = 24
"""Letters that a name may have where room is scarce."""


class Named(NamedTuple):
    """A row that is to be named."""

    table: str
    """That it is in, e.g. its division: names are told apart within it."""
    method: str
    preset: str
    config: Mapping[str, Any]
    id: str
    """Of the row; what follows its last hyphen is short."""


def what_differs(row: Named, namesakes: Sequence[Named], most: int | None = None) -> list[str]:
    """The preset, where presets differ; then the settings in which rows of one preset differ.

    Args:
        row: one of the namesakes.
        namesakes: all rows of its method.
        most: if more settings differ, none of them; None: all of them.
    """
    parts = [row.preset] if len({one.preset for one in namesakes}) > 1 else []
    names = differing_settings([one.config for one in namesakes if one.preset == row.preset])
    if most is None or len(names) <= most:
        # A row of an older version may lack a setting that came later.
        parts += [setting_text(name, row.config[name]) for name in names if name in row.config]
    return parts


def distinct_names(rows: Sequence[Named]) -> list[str]:
    """What the rows of a board are called: methods, and what tells rows of one method apart.

    Returns:
        "mtt"; "mtt (full-data)" where a table has mtt with several presets; "mtt (full-data, alpha
        0.02)" where it has several rows of that one; where too much differs, or nothing, the end of
        the id stands there too.
    """
    found = []
    for row in rows:
        namesakes = [one for one in rows if one[:2] == row[:2]]
        parts = what_differs(row, namesakes, FEW)
        if [what_differs(one, namesakes, FEW) for one in namesakes].count(parts) > 1:
            parts.append(row.id.rpartition("-")[2])
        found.append(f"{row.method} ({', '.join(parts)})" if parts else row.method)
    return found


def shortened(name: str) -> str:
    """A name without its last parts if it is long: "mtt (full-data, …)"."""
    parts, short = name.split(", "), name
    while len(short) > LONGEST and len(parts) > 1:
        parts.pop()
        short = ", ".join([*parts, "…)"])
    return short

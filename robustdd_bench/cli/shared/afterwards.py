"""What the end of a run says beside its figures: how it stands on a board, and what is next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import RESULTS_FOLDER

if TYPE_CHECKING:
    from robustdd_bench.records.record import Record

BOARD = Path("leaderboard")
"""Where `robustdd publish` puts runs by default."""
MOST = 12
"""Rows of a board that are named."""


def afterwards(record: Record, folder: Path, board: Path = BOARD) -> list[str]:
    """Lines for people, below the table of a run that has ended.

    Args:
        record: the run's.
        folder: where it lies.
        board: a board that may be there; rows are told if it has the run's track in this version.
    """
    rows = list(_rows(record, board)) if record.split == "test" else []
    said = [_standing(record, rows, board)] if rows else []
    commands = [
        f"robustdd report {shlex.quote(str(folder))}",
        _comparison(record, folder, rows, board),
    ]
    return [*said, *(f"next: {command}" for command in commands)]


def _rows(record: Record, board: Path) -> Iterator[dict[str, Any]]:
    """The rows of the run's track on a board; none where it cannot be read."""
    from robustdd_bench.files import read_json

    try:
        tracks = read_json(board / "leaderboard.json")["tracks"]
        for track in tracks:
            if track["sha256"] == record.track_sha256:
                for row in track["rows"]:
                    yield {
                        "method": str(row["method"]),
                        "name": str(row.get("label") or row["method"]),
                        "imported": row["plugin"] == "builtin",
                        "mean": float(row["headline"]["mean"]),
                        "reference": bool(row["reference"]),
                        "seeds": list(row["seeds"]),
                    }
    except (UsageError, OSError, KeyError, TypeError, ValueError):
        return


def _standing(record: Record, rows: list[dict[str, Any]], board: Path) -> str:
    from robustdd_bench.protocol.tracks import eps_label

    rows = sorted(rows, key=lambda row: -row["mean"])
    named = [
        f"{row['name']}{' (reference)' if row['reference'] else ''} {100 * row['mean']:.1f}"
        for row in rows[:MOST]
    ]
    if len(rows) > MOST:
        named.append(f"and {len(rows) - MOST} more")
    assert record.aggregates is not None
    return (
        f"published on {record.track.id} ({board}), at {eps_label(record.track.threat.headline)}: "
        f"{', '.join(named)}; this run {100 * record.aggregates.headline.mean:.1f}"
    )


def _comparison(record: Record, folder: Path, rows: list[dict[str, Any]], board: Path) -> str:
    """The command that sets the run beside another one: the best published one of another method
    that it can be paired with, or else all runs of its track.
    """
    others = [
        row
        for row in rows
        if row["method"] != record.method.name
        and not row["reference"]
        and not row["imported"]
        and record.seed in row["seeds"]
    ]
    names = [row["method"] for row in others]
    # A method with several rows has several settings in its folder, which cannot be paired at once.
    others = [row for row in others if names.count(row["method"]) == 1]
    if not others:
        return f"robustdd table {shlex.quote(str(folder.parents[1]))}"
    best = max(others, key=lambda row: row["mean"])
    other = board / RESULTS_FOLDER / record.track.name / best["method"]
    return f"robustdd compare {shlex.quote(str(folder))} {shlex.quote(str(other))}"

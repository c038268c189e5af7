"""Runs in folders, compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.board.compare import Comparison, compare_standings
from robustdd_bench.errors import UsageError
from robustdd_bench.papers.selection import Note, PanelLine, panels, read_runs


def compare_runs(paths: Sequence[Path], note: Note) -> list[Comparison]:
    """The first path's runs minus those of each other path, on every track that they share.

    Args:
        paths: two at least; each has runs of one method with one configuration a track.
        note: is told of what is left out.

    Raises:
        UsageError: a path has several methods or settings, two share no track, or their runs
            cannot be paired.
    """
    first, *others = [_entries(path, note) for path in paths]
    found = []
    for path, entries in zip(paths[1:], others, strict=True):
        shared = [key for key in first if key in entries]
        if not shared:
            raise UsageError(
                f"{paths[0]} is on {_named(first)} and {path} on {_named(entries)}: only runs of "
                "one version of one track, judged on one split, can be compared"
            )
        found += [compare_standings(first[key].standing, entries[key].standing) for key in shared]
    return found


def _entries(path: Path, note: Note) -> dict[tuple[str, str, str], PanelLine]:
    """The one entry of each track and split below a path."""
    found = {}
    for panel in panels(read_runs([path], note)):
        if len(panel.entries) > 1:
            raise UsageError(
                f"{path} has {len(panel.entries)} methods or settings on {panel.title}: "
                f"{'; '.join(entry.name for entry in panel.entries)}. Name the folder of one"
            )
        records = panel.entries[0].standing.records
        found[panel.track.id, records[0].track_sha256, panel.split] = panel.entries[0]
    return found


def _named(entries: dict[tuple[str, str, str], PanelLine]) -> str:
    names = (
        track if split == "test" else f"{track} ({split} split)" for track, _, split in entries
    )
    return ", ".join(sorted(names))

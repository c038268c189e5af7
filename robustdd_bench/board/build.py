"""The board: leaderboard.json, built from the published records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustdd_bench.board.publish import Published, current, published
from robustdd_bench.board.ranking import Division, Ranked, divisions
from robustdd_bench.files import write_json
from robustdd_bench.runs.record_parts import AggregateInfo
from robustdd_bench.runs.records import Record

BOARD_VERSION = 2
"""2: rows have `rank`, `tied`, `division` and `scores`."""


def _accuracy(info: AggregateInfo) -> dict[str, Any]:
    return info.model_dump(mode="json")


def board_row(division: Division, row: Ranked, folders: Mapping[str, str]) -> dict[str, Any]:
    """One row: a method with one configuration over its seeds, and the runs it is made of."""
    standing = row.standing
    ladder = standing.records[0].track.threat.ladder
    return {
        "method": standing.method,
        "reference": standing.reference,
        "division": division.name,
        "rank": row.rank,
        "tied": row.tied,
        "scores": asdict(row.scores),
        "seeds": [record.seed for record in standing.records],
        "clean": asdict(standing.clean),
        "headline": asdict(standing.headline),
        "robust": [
            {"eps": eps, **asdict(found)}
            for eps, found in zip(ladder, standing.robust, strict=True)
        ],
        "runs": [run_entry(record, folders[record.run_id]) for record in standing.records],
    }


def run_entry(record: Record, folder: str) -> dict[str, Any]:
    """One run of a row."""
    assert record.aggregates is not None
    assert record.distilled is not None
    return {
        "run_id": record.run_id,
        "seed": record.seed,
        "images": record.distilled.images,
        "labels": record.distilled.labels,
        "clean": _accuracy(record.aggregates.clean),
        "headline": _accuracy(record.aggregates.headline),
        "robust": [
            {"eps": item.eps, **_accuracy(item.accuracy)} for item in record.aggregates.robust
        ],
        "command": record.command,
        "folder": folder,
    }


def board(runs: list[Published], root: Path) -> dict[str, Any]:
    """The whole board: tracks by name, rows by division and rank."""
    folders = {run.record.run_id: run.folder.relative_to(root).as_posix() for run in runs}
    tracks = []
    for name in sorted({run.record.track.name for run in runs}):
        records = current(runs, name)
        track = records[0].track
        tracks.append(
            {
                "track": name,
                "version": track.version,
                "summary": track.summary,
                "norm": track.threat.norm,
                "headline_eps": track.threat.headline,
                "ladder": list(track.threat.ladder),
                "attacks": [attack.name for attack in track.attacks],
                "rows": [
                    board_row(division, row, folders)
                    for division in divisions(records)
                    for row in division.rows
                ],
            }
        )
    return {"board_version": BOARD_VERSION, "tracks": tracks}


def build(root: Path) -> dict[str, Any]:
    """Write leaderboard.json from what is published under `root`; return its content.

    Raises:
        UsageError: a published record is not valid.
    """
    content = board(published(root), root)
    write_json(root / "leaderboard.json", content)
    return content

"""The board: leaderboard.json and index.html, built from the published records."""

from __future__ import annotations

from pathlib import Path

from robustdd_bench.board.content import BOARD_VERSION, BoardContent
from robustdd_bench.board.page import PAGE_NAME, page
from robustdd_bench.board.publish import Published, newest, published
from robustdd_bench.board.reported import read_reported
from robustdd_bench.board.rows import MARKS, track_content
from robustdd_bench.files import write_json, write_text

BOARD_NAME = "leaderboard.json"


def board(runs: list[Published], root: Path) -> BoardContent:
    """The whole board: tracks by name, rows by division and rank.

    Raises:
        UsageError: a file of reported figures is not valid.
    """
    names = sorted({run.record.track.name for run in runs})
    return BoardContent(
        board_version=BOARD_VERSION,
        tracks=tuple(track_content(newest(runs, name), root) for name in names),
        marks=dict(MARKS),
        reported=read_reported(root),
    )


def build(root: Path) -> BoardContent:
    """Write leaderboard.json and index.html from what is published; return the content.

    Raises:
        UsageError: a published record is not valid.
    """
    content = board(published(root), root)
    text = page(content, root)
    write_json(root / BOARD_NAME, content.model_dump(mode="json"))
    write_text(root / PAGE_NAME, text)
    return content

"""The board: leaderboard.json and index.html, built from the published records."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from robustdd_bench.board.admission.overlaps import DataAtHand
from robustdd_bench.board.admission.submission import Submission
from robustdd_bench.board.divisions import MARKS
from robustdd_bench.board.publish import Published, locked, newest, placing, published
from robustdd_bench.board.reported import read_reported
from robustdd_bench.board.rows import track_content, track_order
from robustdd_bench.board.schema import BOARD_VERSION, BoardContent
from robustdd_bench.board.views.page import PAGE_NAME, page
from robustdd_bench.board.views.run_page import FOLDER, run_pages
from robustdd_bench.errors import RunFailedError
from robustdd_bench.files import json_text, write_changed
from robustdd_bench.plugins import Registry

BOARD_NAME = "leaderboard.json"


def board(runs: list[Published], root: Path) -> BoardContent:
    """The whole board: the front track, the others by name, rows by division and rank.

    Raises:
        UsageError: a file of reported figures is not valid.
    """
    names = track_order(run.record.track.name for run in runs)
    return BoardContent(
        board_version=BOARD_VERSION,
        tracks=tuple(track_content(newest(runs, name), root) for name in names),
        marks=dict(MARKS),
        reported=read_reported(root),
    )


def build(root: Path, registry: Registry | None = None) -> BoardContent:
    """Write leaderboard.json and index.html from what is published; return the content.

    Both are written, or neither; what would not change is left alone.

    Raises:
        UsageError: a published record is not valid.
        RunFailedError: they cannot be written.
    """
    with locked(root):
        return _write(published(root, registry), root)


def publish_and_build(
    run: Path,
    root: Path,
    registry: Registry,
    submission: Submission | None = None,
    data: DataAtHand | None = None,
) -> Published:
    """Publish a run and build the board again; if either fails, the board is as it was.

    Args:
        run: the run's folder.
        root: the board's folder.
        registry: what is installed, which the run's protocol is held against.
        submission: who it is from; None leaves what is there.
        data: the datasets, which the run's set is compared with; None: it is not.

    Raises:
        UsageError: the run cannot be published, or the board is not valid.
        RunFailedError: the board cannot be written.
    """
    with placing(run, root, registry, submission, data) as placed:
        _write(placed.runs, root)
        return placed.run


def _write(runs: list[Published], root: Path) -> BoardContent:
    content = board(runs, root)
    files = texts(content, root)
    if any(name.startswith(f"{FOLDER}/") for name in files):
        try:
            (root / FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            raise RunFailedError(
                f"cannot make {root / FOLDER}: {error.strerror or error}"
            ) from error
    write_changed({root / name: text for name, text in files.items()})
    for path in stale_pages(root, files):
        path.unlink(missing_ok=True)
    return content


def stale_pages(root: Path, files: Collection[str]) -> list[Path]:
    """Pages of runs that are not published any more.

    Args:
        root: the board's folder.
        files: names of what the records make, as `texts` gives them.
    """
    return [
        path
        for path in sorted((root / FOLDER).glob("*.html"))
        if f"{FOLDER}/{path.name}" not in files
    ]


def texts(content: BoardContent, root: Path) -> dict[str, str]:
    """The generated files of a board, by name."""
    return {
        **run_pages(content),
        BOARD_NAME: json_text(content.model_dump(mode="json")),
        PAGE_NAME: page(content, root),
    }

"""Putting a run's files on a board: the whole folder at once, and as it was if anything fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from robustdd_bench.board.admission.rules import set_of
from robustdd_bench.board.admission.submission import Submission, write_submission
from robustdd_bench.board.confirmations import CONFIRMATIONS
from robustdd_bench.drawing.figures import save_distilled
from robustdd_bench.errors import RunFailedError
from robustdd_bench.filenames import RECORD_FILE, SET_FILE, SET_PICTURE
from robustdd_bench.records.record import Record

STAGING = ".publishing."


def place(
    run: Path,
    target: Path,
    record: Record,
    submission: Submission | None,
    undo: contextlib.ExitStack,
) -> None:
    """Put the whole folder of a run there; `undo` brings back what was there.

    Raises:
        RunFailedError: it cannot be written.
    """
    parents = [folder for folder in (target.parent, *target.parents[1:4]) if not folder.exists()]
    staging = old = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        undo.callback(_remove_empty, parents)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=target.parent))
        undo.callback(shutil.rmtree, staging, ignore_errors=True)
        _fill(staging, run, record, submission)
        os.chmod(staging, 0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=STAGING, dir=target.parent))
            undo.callback(shutil.rmtree, old, ignore_errors=True)
            os.replace(target, old)
            undo.callback(os.replace, old, target)
        os.replace(staging, target)
        undo.callback(os.replace, target, staging)
        if old is not None and (old / CONFIRMATIONS).is_dir():
            os.replace(old / CONFIRMATIONS, target / CONFIRMATIONS)
            undo.callback(os.replace, target / CONFIRMATIONS, old / CONFIRMATIONS)
    except OSError as error:
        raise RunFailedError(f"cannot publish to {target}: {error.strerror or error}") from error


def _fill(folder: Path, run: Path, record: Record, submission: Submission | None) -> None:
    """Record, set, a preview made from the set, and who it is from."""
    shutil.copyfile(run / RECORD_FILE, folder / RECORD_FILE)
    if not record.method.reference:
        shutil.copyfile(run / SET_FILE, folder / SET_FILE)
    # Of the copy, which nobody changes any more.
    source = run if record.method.reference else folder
    distilled = set_of(record, source, published=False)
    if distilled is None:
        shutil.copyfile(run / SET_PICTURE, folder / SET_PICTURE)
    else:
        assert record.data is not None
        save_distilled(folder / SET_PICTURE, distilled, record.data.num_classes)
    if submission is not None:
        write_submission(folder, submission)


def mend(
    target: Path,
    before: Submission | None,
    after: Submission | None,
    undo: contextlib.ExitStack,
) -> None:
    """Change what is said of a published run; `undo` brings back what was said before."""
    write_submission(target, after)
    undo.callback(write_submission, target, before)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()

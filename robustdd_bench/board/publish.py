"""Publishing: a run that may be shown to others is copied to the board.

A published run is a folder `results/<track>/<method>/<run id>/` with `record.json`, the distilled
set and its preview. Reference rows (the full data) are published without their set, which is the
training split itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.board.checks import PREVIEW_NAME, SET_NAME, reasons_against, set_of
from robustdd_bench.board.copies import clashes
from robustdd_bench.board.overlaps import DataAtHand
from robustdd_bench.board.submission import (
    Submission,
    read_submission,
    write_submission,
)
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import file_lock
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import RECORD_NAME
from robustdd_bench.runs.figures import save_distilled
from robustdd_bench.runs.records import Record, read_record

RESULTS = "results"
STAGING = ".publishing."
LOCK = ".lock"
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Published:
    """A published run."""

    record: Record
    folder: Path
    submission: Submission | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A run that was just published, and the board it is part of."""

    run: Published
    runs: list[Published]
    """Every published run, this one among them."""


def place_of(record: Record) -> Path:
    """Where a record belongs, below the board's folder."""
    return Path(RESULTS, record.track.name, record.method.name, record.run_id)


@contextlib.contextmanager
def locked(board: Path) -> Iterator[None]:
    """Hold the board's lock: one process at a time writes to it.

    Raises:
        RunFailedError: another one has held it for a minute, or the board cannot be written.
    """
    try:
        board.mkdir(parents=True, exist_ok=True)
        held = file_lock(board / LOCK, PATIENCE_S)
    except OSError as error:
        raise RunFailedError(f"cannot write {board}: {error.strerror or error}") from error
    if held is None:
        raise RunFailedError(f"another process is writing to {board}; try again when it is done")
    try:
        yield
    finally:
        held.release()


def publish(
    run: Path,
    board: Path,
    registry: Registry | None = None,
    submission: Submission | None = None,
    data: DataAtHand | None = None,
) -> Published:
    """Copy a run to the board; publishing it again changes nothing but what `submission` says.

    Tables are not built again; `board.build.publish_and_build` does that too.

    Args:
        run: the run's folder.
        board: the folder that holds `results/`.
        registry: what is installed, which the run's protocol is held against; None: it is not.
        submission: who it is from; None leaves what is there.
        data: the datasets, which the run's set is compared with; None: it is not.

    Raises:
        UsageError: the run cannot be published, or the board is not valid; the message gives
            every reason.
        RunFailedError: the board cannot be written; it is as it was.
    """
    with placing(run, board, registry, submission, data) as placed:
        return placed.run


@contextlib.contextmanager
def placing(
    run: Path,
    board: Path,
    registry: Registry | None = None,
    submission: Submission | None = None,
    data: DataAtHand | None = None,
) -> Iterator[Placed]:
    """As `publish`; if the body raises, the published runs are as they were."""
    record = read_record(run / RECORD_NAME)
    reasons = reasons_against(record, run, registry, new=True, published=False)
    if data is not None:
        reasons = list(dict.fromkeys(reasons + data.reasons(record, run)))
    if reasons and not board.exists():
        raise _refused(run, reasons)
    target = board / place_of(record)
    with locked(board):
        _sweep(board)
        others = published(board, registry, without=target)
        if record.status == "complete":
            reasons += clashes(record, [other.record for other in others])
        before, other_results = _already(target, record, registry)
        if other_results:
            reasons.append(other_results)
        if reasons:
            raise _refused(run, reasons)
        found = _joined(submission, before, run)
        with contextlib.ExitStack() as undo:
            if before is None:
                _place(run, target, record, found, undo)
            elif found != before.submission:
                _mend(target, before.submission, found, undo)
            done = Published(record if before is None else before.record, target, found)
            runs = sorted([*others, done], key=lambda one: one.folder)
            yield Placed(done, runs)
            undo.pop_all()
        _sweep(board)


def _refused(run: Path, reasons: list[str]) -> UsageError:
    return UsageError(f"{run} cannot be published: {'; '.join(reasons)}")


def _joined(
    submission: Submission | None, before: Published | None, run: Path
) -> Submission | None:
    """What is said of a run: what is given goes before what was there."""
    there = before.submission if before is not None else read_submission(run)
    return there if submission is None else submission.over(there)


def _place(
    run: Path,
    target: Path,
    record: Record,
    submission: Submission | None,
    undo: contextlib.ExitStack,
) -> None:
    """Put the whole folder there at once; `undo` brings back what was there."""
    parents = [folder for folder in (target.parent, *target.parents[1:3]) if not folder.exists()]
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
    except OSError as error:
        raise RunFailedError(f"cannot publish to {target}: {error.strerror or error}") from error


def _fill(folder: Path, run: Path, record: Record, submission: Submission | None) -> None:
    """Record, set, a preview made from the set, and who it is from."""
    shutil.copyfile(run / RECORD_NAME, folder / RECORD_NAME)
    if not record.method.reference:
        shutil.copyfile(run / SET_NAME, folder / SET_NAME)
    # Of the copy, which nobody changes any more.
    source = run if record.method.reference else folder
    distilled = set_of(record, source, published=False)
    if distilled is None:
        shutil.copyfile(run / PREVIEW_NAME, folder / PREVIEW_NAME)
    else:
        assert record.data is not None
        save_distilled(folder / PREVIEW_NAME, distilled, record.data.num_classes)
    if submission is not None:
        write_submission(folder, submission)


def _mend(
    target: Path,
    before: Submission | None,
    after: Submission | None,
    undo: contextlib.ExitStack,
) -> None:
    write_submission(target, after)
    undo.callback(write_submission, target, before)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sweep(board: Path) -> None:
    """Remove what processes that were killed have left; the lock says that none is at work."""
    for path in (board / RESULTS).glob(f"*/*/{STAGING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _already(
    target: Path, record: Record, registry: Registry | None
) -> tuple[Published | None, str | None]:
    """The run, if it is published and whole, and why it cannot replace what is there.

    A damaged publication is none: it is to be replaced.
    """
    try:
        before = read_record(target / RECORD_NAME)
    except UsageError:
        return None, None
    # Not the hash of the whole: the same plan can be written as other commands.
    if _results(before) != _results(record):
        return None, (
            f"{target} is published with other results of the same plan; find out why they differ, "
            "and delete that folder to replace them"
        )
    if reasons_against(before, target, registry):
        return None, None
    return Published(before, target, read_submission(target)), None


def _results(record: Record) -> tuple[object, ...]:
    return record.data, record.distilled, record.students, record.flags


def published(
    board: Path, registry: Registry | None = None, *, without: Path | None = None
) -> list[Published]:
    """Every published run, by track, method and run id.

    Args:
        board: the folder that holds `results/`.
        registry: what is installed: a track of the same name and version has to be the same
            protocol. Tracks that are not installed, and other versions, stay as they are.
        without: a folder that is passed over.

    Raises:
        UsageError: a record is not valid, or does not lie where it belongs.
    """
    found = []
    protocols: dict[str, str] = {}
    for path in sorted((board / RESULTS).rglob(RECORD_NAME)):
        # What is staged was left by a process that was killed.
        if path.parent.name.startswith(STAGING) or path.parent == without:
            continue
        record = read_record(path)
        problems = problems_of(record, path.parent, board, protocols, registry)
        if problems:
            raise UsageError(f"{path}: {'; '.join(problems)}")
        found.append(Published(record, path.parent, read_submission(path.parent)))
    return found


def problems_of(
    record: Record,
    folder: Path,
    board: Path,
    protocols: dict[str, str],
    registry: Registry | None,
) -> list[str]:
    """What is wrong with a run on a board.

    Args:
        record: its record.
        folder: where it lies.
        board: the folder that holds `results/`.
        protocols: hashes of the tracks of the records before it, by id; its own is added.
        registry: what is installed; see `published`.
    """
    place = place_of(record)
    problems = []
    if folder != board / place:
        problems.append(f"the record belongs under {place.relative_to(RESULTS).as_posix()}")
    problems += reasons_against(record, folder, registry)
    if protocols.setdefault(record.track.id, record.track_sha256) != record.track_sha256:
        problems.append(
            f"its track {record.track.id} is another one than that of the records before it; a "
            "changed protocol needs a new version"
        )
    return problems


def newest(runs: list[Published], track: str) -> list[Published]:
    """The runs of a track's newest version; of several versions only the newest is compared."""
    here = [run for run in runs if run.record.track.name == track]
    version = max((run.record.track.version for run in here), default=0)
    return [run for run in here if run.record.track.version == version]


def current(runs: list[Published], track: str) -> list[Record]:
    """The records of a track's newest version."""
    return [run.record for run in newest(runs, track)]

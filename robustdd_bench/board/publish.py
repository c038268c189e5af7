"""Publishing: a run that may be shown to others is copied to the board.

A published run is a folder `results/<track>/<method>/<run id>/` with `record.json`, the distilled
set and its preview. Reference rows (the full data) are published without their set, which is the
training split itself. A run that was made again lies below the first one; see
`robustdd_bench.board.confirmations`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from robustdd_bench.board.admission.duplicates import clashes
from robustdd_bench.board.admission.overlaps import DataAtHand
from robustdd_bench.board.admission.rules import reasons_against
from robustdd_bench.board.admission.submission import (
    Submission,
    read_submission,
    statement_reasons,
)
from robustdd_bench.board.confirmations import (
    CONFIRMATIONS,
    folder_name,
    precedence,
    run_of,
)
from robustdd_bench.board.placing import STAGING, mend, place
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import LOCK_FILE, RECORD_FILE, RESULTS_FOLDER
from robustdd_bench.files import file_lock
from robustdd_bench.plugins import Registry
from robustdd_bench.records.record import Record, read_record

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Published:
    """A published run."""

    record: Record
    folder: Path
    submission: Submission | None = None
    confirmations: tuple[Published, ...] = ()
    """The same run made again."""

    def every(self) -> list[Published]:
        """The run and its confirmations."""
        return [self, *self.confirmations]


@dataclass(frozen=True, slots=True)
class Placed:
    """A run that was just published, and the board it is part of."""

    run: Published
    runs: list[Published]
    """Every published run, this one among them."""


def place_of(record: Record) -> Path:
    """Where the record of a run belongs, below the board's folder; not of a confirmation."""
    return Path(RESULTS_FOLDER, record.track.name, record.method.name, record.run_id)


@contextlib.contextmanager
def locked(board: Path) -> Iterator[None]:
    """Hold the board's lock: one process at a time writes to it.

    Raises:
        RunFailedError: another one has held it for a minute, or the board cannot be written.
    """
    try:
        board.mkdir(parents=True, exist_ok=True)
        held = file_lock(board / LOCK_FILE, PATIENCE_S)
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
    record = read_record(run / RECORD_FILE)
    reasons = reasons_against(record, run, registry, new=True, published=False)
    if data is not None:
        reasons = list(dict.fromkeys(reasons + data.reasons(record, run)))
    if reasons and not board.exists():
        raise _refused(run, reasons)
    with locked(board):
        _sweep(board)
        target = board / place_of(record)
        others = published(board, registry, without=target)
        before, is_other = _already(target, record, registry)
        if is_other and before is not None:
            below = _below(target, board, registry)
            others = [*others, replace(before, confirmations=below)]
        # What lies at its own place is published again or repaired, whatever else is there.
        first = _first(record, others) if is_other or not target.exists() else None
        if first is not None:
            target = first.folder / CONFIRMATIONS / folder_name(run / RECORD_FILE)
            before, _ = _already(target, record, registry)
        if record.status == "complete":
            known = (one.record for other in others for one in other.every())
            reasons += clashes(record, known)
        if is_other and before is None and _same_execution(record, first):
            reasons.append(
                f"{target.parents[1]} is published with other results of the same plan, started "
                "at the same time; find out why they differ, and delete that folder to replace them"
            )
        found = _joined(submission, before, run)
        reasons += statement_reasons(record, found, confirms=first is not None)
        if reasons:
            raise _refused(run, reasons)
        with contextlib.ExitStack() as undo:
            if before is None:
                place(run, target, record, found, undo)
            elif found != before.submission:
                mend(target, before.submission, found, undo)
            done = Published(record if before is None else before.record, target, found)
            again = {one.folder: one.confirmations for one in others}
            if first is None:
                others, again[target] = [*others, done], _below(target, board, registry)
            else:
                left = (one for one in first.confirmations if one.folder != target)
                again[first.folder] = (*left, done)
            yield Placed(done, _joined_runs(others, again))
            undo.pop_all()
        _sweep(board)


def _sorted(runs: list[Published]) -> list[Published]:
    return sorted(runs, key=lambda one: one.folder)


def _in_order(again: Iterable[Published]) -> list[Published]:
    return sorted(again, key=lambda one: (precedence(one.record), one.folder))


def _below(folder: Path, board: Path, registry: Registry | None) -> tuple[Published, ...]:
    """The confirmations below a run.

    Raises:
        UsageError: one is not valid.
    """
    return tuple(
        _in_order(
            _checked(path, board, {}, registry)
            for path in (folder / CONFIRMATIONS).glob(f"*/{RECORD_FILE}")
        )
    )


def _checked(
    path: Path, board: Path, protocols: dict[str, str], registry: Registry | None
) -> Published:
    """The run or confirmation whose record is at `path`.

    Raises:
        UsageError: it is not valid, or does not lie where it belongs.
    """
    record = read_record(path)
    said = read_submission(path.parent)
    problems = problems_of(record, path.parent, board, protocols, registry)
    problems += statement_reasons(record, said, confirms=run_of(path.parent) is not None)
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}")
    return Published(record, path.parent, said)


def _first(record: Record, others: list[Published]) -> Published | None:
    """The published run that a record confirms."""
    identity = record.plan().identity()
    return next((run for run in others if run.record.plan().identity() == identity), None)


def _same_execution(record: Record, first: Published | None) -> bool:
    return first is not None and first.record.costs.started == record.costs.started


def _refused(run: Path, reasons: list[str]) -> UsageError:
    return UsageError(f"{run} cannot be published: {'; '.join(reasons)}")


def _joined(
    submission: Submission | None, before: Published | None, run: Path
) -> Submission | None:
    """What is said of a run: what is given goes before what was there."""
    there = before.submission if before is not None else read_submission(run)
    return there if submission is None else submission.over(there)


def _sweep(board: Path) -> None:
    """Remove what processes that were killed have left; the lock says that none is at work."""
    for path in (board / RESULTS_FOLDER).rglob(f"{STAGING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _already(
    target: Path, record: Record, registry: Registry | None
) -> tuple[Published | None, bool]:
    """What lies at the place of a record, if it is whole, and whether it is another execution.

    A damaged publication is none: it is to be replaced.
    """
    try:
        before = read_record(target / RECORD_FILE)
    except UsageError:
        return None, False
    if reasons_against(before, target, registry):
        return None, False
    # Not the hash of the whole: the same plan can be written as other commands.
    same = _results(before) == _results(record)
    same = same and before.costs.started == record.costs.started
    return Published(before, target, read_submission(target)), not same


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
        without: the folder of a run or confirmation that is passed over, with what is below it.

    Raises:
        UsageError: a record is not valid, or does not lie where it belongs.
    """
    runs: list[Published] = []
    again: dict[Path, tuple[Published, ...]] = {}
    protocols: dict[str, str] = {}
    for path in sorted((board / RESULTS_FOLDER).rglob(RECORD_FILE)):
        folder = path.parent
        # What is staged was left by a process that was killed.
        if any(part.startswith(STAGING) for part in folder.relative_to(board).parts):
            continue
        first = run_of(folder)
        if without is not None and without in (folder, first):
            continue
        one = _checked(path, board, protocols, registry)
        if first is None:
            runs.append(one)
        else:
            again[first] = (*again.get(first, ()), one)
    return _joined_runs(runs, again)


def _joined_runs(
    runs: list[Published], again: Mapping[Path, tuple[Published, ...]]
) -> list[Published]:
    """The runs with their confirmations: those below them, and later ones of the same identity."""
    first: dict[str, Published] = {}
    later: dict[str, list[Published]] = {}
    for run in sorted(runs, key=lambda one: precedence(one.record)):
        identity = run.record.plan().identity()
        if first.setdefault(identity, run) is not run:
            later.setdefault(identity, []).append(run)
        later.setdefault(identity, []).extend(again.get(run.folder, ()))
    return _sorted(
        [
            replace(run, confirmations=tuple(_in_order(later[identity])))
            for identity, run in first.items()
        ]
    )


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
    problems = _misplaced(record, folder, board)
    problems += reasons_against(record, folder, registry)
    if protocols.setdefault(record.track.id, record.track_sha256) != record.track_sha256:
        problems.append(
            f"its track {record.track.id} is another one than that of the records before it; a "
            "changed protocol needs a new version"
        )
    return problems


def _misplaced(record: Record, folder: Path, board: Path) -> list[str]:
    """What is wrong with the place of a run or a confirmation."""
    first = run_of(folder)
    if first is None:
        place = place_of(record)
        if folder == board / place:
            return []
        return [f"the record belongs under {place.relative_to(RESULTS_FOLDER).as_posix()}"]
    try:
        confirmed = read_record(first / RECORD_FILE)
    except UsageError:
        return [f"it confirms the run in {first.relative_to(board).as_posix()}, which is damaged"]
    problems = []
    if first != board / place_of(confirmed):
        problems.append("what it confirms is no published run")
    if confirmed.plan().identity() != record.plan().identity():
        problems.append(
            f"it does not confirm run {confirmed.run_id}: method, settings, track, seed or split "
            "differ"
        )
    if folder.name != folder_name(folder / RECORD_FILE):
        problems.append(f"its folder must be called {folder_name(folder / RECORD_FILE)}")
    return problems


def newest(runs: list[Published], track: str) -> list[Published]:
    """The runs of a track's newest version; of several versions only the newest is compared."""
    here = [run for run in runs if run.record.track.name == track]
    version = max((run.record.track.version for run in here), default=0)
    return [run for run in here if run.record.track.version == version]


def current(runs: list[Published], track: str) -> list[Record]:
    """The records of a track's newest version."""
    return [run.record for run in newest(runs, track)]

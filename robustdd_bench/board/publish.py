"""Publishing: a run that may be shown to others is copied to the board.

A published run is a folder `results/<track>/<method>/<run id>/` with `record.json`, the distilled
set and its preview. Reference rows (the full data) are published without their set, which is the
training split itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.board.submission import Submission, read_submission
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.runs.records import Record, read_record

SET_NAME = "distilled.safetensors"
PREVIEW_NAME = "distilled.png"
STAGING = ".publishing."


@dataclass(frozen=True, slots=True)
class Published:
    """A published run."""

    record: Record
    folder: Path
    submission: Submission | None = None


def reasons_against(record: Record, folder: Path) -> list[str]:
    """Why a run cannot be published, all reasons at once; empty if it can."""
    reasons = []
    if record.status != "complete":
        reason = record.failure.reason if record.failure else "unknown"
        reasons.append(f"the run failed: {reason}")
        return reasons
    if record.split != "test":
        reasons.append("it was evaluated on a validation split, which is for tuning")
    if record.method.plugin == "builtin":
        reasons.append("a given set has no method; run the method itself")
    failed = sorted({flag.name for flag in record.flags if not flag.passed})
    if failed:
        reasons.append(f"sanity checks failed: {', '.join(failed)}")
    if record.distilled is not None and not record.method.reference:
        try:
            found = DistilledSet.load(folder / SET_NAME).sha256()
            if found != record.distilled.sha256:
                reasons.append(f"{SET_NAME} is not the set the record speaks of")
        except UsageError as error:
            reasons.append(str(error))
    if not (folder / PREVIEW_NAME).is_file():
        reasons.append(f"{PREVIEW_NAME} is missing")
    return reasons


def publish(run: Path, board: Path) -> Published:
    """Copy a run to the board; publishing it again changes nothing.

    Args:
        run: the run's folder.
        board: the folder that holds `results/`.

    Raises:
        UsageError: the run cannot be published; the message gives every reason.
    """
    record = read_record(run / "record.json")
    reasons = reasons_against(record, run)
    if reasons:
        raise UsageError(f"{run} cannot be published: {'; '.join(reasons)}")
    target = board / "results" / record.track.name / record.method.name / record.run_id
    before = _already(target, record)
    if before is not None:
        return before
    names = ["record.json", PREVIEW_NAME]
    if not record.method.reference:
        names.append(SET_NAME)
    staging = old = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=target.parent))
        for name in names:
            shutil.copyfile(run / name, staging / name)
        os.chmod(staging, 0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=STAGING, dir=target.parent))
            os.replace(target, old)
        os.replace(staging, target)
    except OSError as error:
        raise RunFailedError(f"cannot publish to {target}: {error.strerror or error}") from error
    finally:
        for left in (staging, old):
            if left is not None:
                shutil.rmtree(left, ignore_errors=True)
    return Published(record, target)


def _already(target: Path, record: Record) -> Published | None:
    """The run, if it is published and whole; a damaged one is to be published again.

    Raises:
        UsageError: the same plan is published with other results.
    """
    if not target.exists():
        return None
    try:
        before = read_record(target / "record.json")
    except UsageError:
        return None
    # Not the hash of the whole: the same plan can be written as other commands.
    if _results(before) != _results(record):
        raise UsageError(
            f"{target} is published with other results of the same plan; find out why they differ, "
            "and delete that folder to replace them"
        )
    return None if reasons_against(before, target) else Published(before, target)


def _results(record: Record) -> tuple[object, ...]:
    return record.data, record.distilled, record.students, record.flags


def published(board: Path) -> list[Published]:
    """Every published run, by track, method and run id.

    Raises:
        UsageError: a record is not valid, or does not lie where it belongs.
    """
    found = []
    protocols: dict[str, str] = {}
    results = board / "results"
    for path in sorted(results.rglob("record.json")):
        if path.parent.name.startswith(STAGING):  # left by a process that was killed
            continue
        record = read_record(path)
        place = (record.track.name, record.method.name, record.run_id)
        if path.parent != results.joinpath(*place):
            raise UsageError(f"{path}: the record belongs under {'/'.join(place)}")
        reasons = reasons_against(record, path.parent)
        if reasons:
            raise UsageError(f"{path}: {'; '.join(reasons)}")
        if protocols.setdefault(record.track.id, record.track_sha256) != record.track_sha256:
            raise UsageError(
                f"{path}: its track {record.track.id} is another one than that of the records "
                "before it; a changed protocol needs a new version"
            )
        found.append(Published(record, path.parent, read_submission(path.parent)))
    return found


def newest(runs: list[Published], track: str) -> list[Published]:
    """The runs of a track's newest version; of several versions only the newest is compared."""
    here = [run for run in runs if run.record.track.name == track]
    version = max((run.record.track.version for run in here), default=0)
    return [run for run in here if run.record.track.version == version]


def current(runs: list[Published], track: str) -> list[Record]:
    """The records of a track's newest version."""
    return [run.record for run in newest(runs, track)]

"""What a maintainer wants to know of a pull request with records before reading it.

A submission is the difference between two trees of files. It may add folders to
`leaderboard/results/` and files to `leaderboard/reported/`, and carry what is generated from them.
Everything that is not expected is a reason against it; what is expected is measured, read as data
and held against the protocol that is installed here and against what is published.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustdd_bench.board.admission import png as preview
from robustdd_bench.board.admission import submission
from robustdd_bench.board.admission import tensors as sets
from robustdd_bench.board.admission.duplicates import clashes
from robustdd_bench.board.admission.overlaps import DataAtHand
from robustdd_bench.board.admission.rules import reasons_against
from robustdd_bench.board.admission.strings import visible
from robustdd_bench.board.build import board, texts
from robustdd_bench.board.confirmations import CONFIRMATIONS, folder_name, run_of
from robustdd_bench.board.publish import place_of, published
from robustdd_bench.board.pull_requests.trees import (
    KINDS,
    PLAIN,
    FolderTree,
    GitTree,
    Tree,
    merge_base,
)
from robustdd_bench.board.reported import MAX_BYTES as MAX_REPORTED
from robustdd_bench.board.reported import read_reported
from robustdd_bench.board.views.readme import with_front, with_section
from robustdd_bench.board.views.run_page import FOLDER
from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import RECORD_FILE, SET_FILE, SET_PICTURE
from robustdd_bench.plugins import NAME_PATTERN, Registry
from robustdd_bench.protocol.tracks import MAX_RECORD
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.text.terminal import size_text

ROOT = "leaderboard"
README, RESULTS = "README.md", "docs/results.md"
LIMITS = {
    RECORD_FILE: MAX_RECORD,
    SET_FILE: sets.MAX_BYTES + sets.MAX_HEADER + 8,
    SET_PICTURE: preview.MAX_BYTES,
    submission.SUBMISSION_NAME: submission.MAX_BYTES,
}
MAX_TOTAL = 2 * 2**30
MAX_FOLDERS = 1000
MAX_CHANGES = 10_000
_NAME = NAME_PATTERN.strip("^$")
_RUN = re.compile(
    rf"{ROOT}/results/([a-z0-9][a-z0-9-]*/{_NAME}/[0-9a-f]{{12}}"
    rf"(?:/{CONFIRMATIONS}/[0-9a-f]{{12}})?)/([^/]+)"
)
_REPORTED = re.compile(rf"{ROOT}/reported/[a-z0-9][a-z0-9-]*\.json")
GENERATED = (f"{ROOT}/leaderboard.json", f"{ROOT}/index.html", README, RESULTS)
_RUN_PAGE = re.compile(rf"{ROOT}/{FOLDER}/[0-9a-f]{{12}}\.html")
MAX_GENERATED = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason against a submission."""

    path: str
    """The file or folder, from the root of the repository."""
    reason: str


@dataclass(slots=True)
class SubmissionReport:
    """What was found in a submission."""

    refused: list[Refusal] = field(default_factory=list)
    runs: list[tuple[str, Record]] = field(default_factory=list)
    """Folder and record of each new run that can be read."""
    notes: list[str] = field(default_factory=list)
    """What a person has to look at."""

    def refuse(self, path: str, reason: str) -> None:
        """Add a reason."""
        self.refused.append(Refusal(visible(path), visible(reason)))


def check_revisions(
    repository: Path,
    head: str,
    against: str,
    registry: Registry,
    data: DataAtHand | None = None,
) -> SubmissionReport:
    """Check what a revision adds to another one since both went apart.

    Args:
        repository: a clone that has both; nothing is checked out.
        head: the submission.
        against: the branch that it is to be merged into, whose records are the published ones.
        registry: what is installed here.
        data: the datasets, which new sets are compared with; None: they are not.

    Raises:
        UsageError: there is no such revision, or the published board is not valid.
    """
    new, target = GitTree(repository, head), GitTree(repository, against)
    base = GitTree(repository, merge_base(repository, target.commit, new.commit))
    return check_trees(new, base, target, registry, data)


def check_folders(
    new: Path, base: Path, registry: Registry, data: DataAtHand | None = None
) -> SubmissionReport:
    """Check one board's folder against another one.

    Raises:
        UsageError: a folder is missing, or the published board is not valid.
    """
    before = FolderTree(base, ROOT)
    return check_trees(FolderTree(new, ROOT), before, before, registry, data)


def check_trees(
    new: Tree, base: Tree, target: Tree, registry: Registry, data: DataAtHand | None = None
) -> SubmissionReport:
    """Check the difference between `base` and `new`, which is to be merged into `target`.

    Raises:
        UsageError: the published board is not valid.
    """
    report = SubmissionReport()
    changed = sorted(
        path
        for path in new.entries.keys() | base.entries.keys()
        if new.entries.get(path) != base.entries.get(path)
    )
    if not any(path.startswith(f"{ROOT}/") for path in changed):
        report.notes.append(f"nothing under {ROOT}/ changed: this is no submission")
        return report
    if len(changed) > MAX_CHANGES:
        report.refuse(ROOT, f"{len(changed)} files changed; up to {MAX_CHANGES} are looked at")
        return report
    there = {match[1] for path in base.entries if (match := _RUN.fullmatch(path))}
    sound = [path for path in changed if _sound(path, new, base, there, report)]
    size = sum(new.entries[path].size for path in sound)
    folders = sorted({match[1] for path in sound if (match := _RUN.fullmatch(path))})
    if size > MAX_TOTAL or len(folders) > MAX_FOLDERS:
        report.refuse(ROOT, f"{len(folders)} runs of {size_text(size)} are too many for one")
        return report
    with tempfile.TemporaryDirectory(prefix="robustdd-submission.") as place:
        before, after = Path(place, "target"), Path(place, "new")
        target.extract(_of_board(target), before)
        new.extract(sound, after)
        _check_runs(folders, after, before, registry, report, data)
        _check_reported([path for path in sound if _REPORTED.fullmatch(path)], after, report)
        if report.refused:
            report.notes.append("what is generated is checked once the rest is in order")
        else:
            new.extract(sorted(set(_of_board(new)) - set(sound)), after)
            pages = [page for page in (README, RESULTS) if page in base.entries]
            base.extract(pages, Path(place, "base"))
            _check_generated(changed, after, Path(place, "base"), registry, report)
    report.refused.sort(key=lambda refusal: refusal.path)
    return report


def _sound(path: str, new: Tree, base: Tree, there: set[str], report: SubmissionReport) -> bool:
    """Whether a changed file may be read; else the report says why not.

    Args:
        path: the file.
        new: the submission.
        base: what it is onto.
        there: the folders of published runs, below `results/`.
        report: what is found goes there.
    """
    entry, before = new.entries.get(path), base.entries.get(path)
    match = _RUN.fullmatch(path)
    reason = None
    if match is not None:
        if match[1] in there:
            what = "deleted" if entry is None else "changed" if before is not None else "added to"
            reason = f"it was {what}: a published run stays as it is"
        elif match[2] not in LIMITS:
            reason = f"a published run has no such file, only {', '.join(sorted(LIMITS))}"
    elif _REPORTED.fullmatch(path):
        reason = "it was deleted" if entry is None else None
    elif path not in GENERATED and not _RUN_PAGE.fullmatch(path):
        reason = (
            f"a submission adds runs to {ROOT}/results/<track>/<method>/<run id>/ or files to "
            f"{ROOT}/reported/, and changes nothing else"
        )
    elif entry is None:
        reason = "it was deleted"
    if reason is None and entry is not None:
        limit = LIMITS[match[2]] if match else MAX_GENERATED
        limit = MAX_REPORTED if _REPORTED.fullmatch(path) else limit
        if entry.mode != PLAIN:
            reason = f"it is {KINDS.get(entry.mode, 'no file')}, not a plain file"
        elif entry.size > limit:
            reason = f"it has {size_text(entry.size)}; up to {size_text(limit)} are read"
    if reason is not None:
        report.refuse(path, reason)
    return reason is None


def _of_board(tree: Tree) -> list[str]:
    """The files of a board that its tables are built from."""
    return [
        path
        for path, entry in tree.entries.items()
        if entry.mode == PLAIN and (_RUN.fullmatch(path) or _REPORTED.fullmatch(path))
    ]


def _check_runs(
    folders: Iterable[str],
    new: Path,
    target: Path,
    registry: Registry,
    report: SubmissionReport,
    data: DataAtHand | None,
) -> None:
    """Every new run by itself, then against what is published and against one another."""
    runs = published(target / ROOT, registry)
    there = [one.record for run in runs for one in run.every()]
    first = {
        f"{ROOT}/{run.folder.relative_to(target / ROOT).as_posix()}": run.record for run in runs
    }
    for folder in folders:
        where = f"{ROOT}/results/{folder}"
        try:
            record = read_record(new / where / RECORD_FILE)
        except UsageError as error:
            report.refuse(where, _plain(error, new / where))
            continue
        reasons = list(_reasons(record, where, new / where, registry))
        reasons += _made_again(record, where, new / where, first)
        if data is not None:
            reasons = list(dict.fromkeys(reasons + data.reasons(record, new / where)))
        if record.status == "complete":
            others = [*there, *(known for _, known in report.runs)]
            reasons += clashes(record, (one for one in others if one.run_id != record.run_id))
        for reason in reasons:
            report.refuse(where, reason)
        report.runs.append((where, record))
        if run_of(Path(where)) is None:
            first.setdefault(where, record)
        if record.method.name not in registry.entries["distillers"]:
            report.notes.append(
                f"{where}: method {record.method.name} of {record.method.distribution} is not "
                "installed here; its settings cannot be checked"
            )
    report.notes += [] if data is None else data.notes


def _made_again(
    record: Record, where: str, folder: Path, first: Mapping[str, Record]
) -> Iterator[str]:
    """What is wrong with a run that was made again, or that is none but says so.

    Args:
        record: its record.
        where: its folder, from the root of the repository.
        folder: where that was unpacked.
        first: the runs that are published, or come before it in the submission, by their folders.
    """
    identity = record.plan().identity()
    confirmed = run_of(Path(where))
    if confirmed is None:
        for place, one in first.items():
            if place == where:
                yield "it is published already"
            elif one.plan().identity() == identity:
                yield (
                    f"it is run {one.run_id} made again; `robustdd publish` puts it under "
                    f"{place}/{CONFIRMATIONS}/"
                )
        return
    other = first.get(confirmed.as_posix())
    if other is None:
        yield f"{confirmed.as_posix()}, which it confirms, is no published run"
    elif other.plan().identity() != identity:
        yield (
            f"it does not confirm run {other.run_id}: method, settings, track, seed or split differ"
        )
    name = folder_name(folder / RECORD_FILE)
    if Path(where).name != name:
        yield f"its folder must be called {name}"


def _reasons(record: Record, where: str, folder: Path, registry: Registry) -> Iterator[str]:
    place = f"{ROOT}/{place_of(record).as_posix()}"
    if run_of(Path(where)) is None and place != where:
        yield f"its record belongs under {place}"
    if record.method.reference and (folder / SET_FILE).exists():
        yield f"a reference is published without {SET_FILE}"
    try:
        said = submission.read_submission(folder)
    except UsageError as error:
        yield _plain(error, folder)
    else:
        confirms = run_of(Path(where)) is not None
        yield from submission.statement_reasons(record, said, confirms=confirms)
    for reason in reasons_against(record, folder, registry, new=True):
        yield reason.replace(f"{folder}/", "")


def _plain(error: UsageError, folder: Path) -> str:
    """A message without the place that the submission was unpacked to."""
    return str(error).replace(f"{folder}/", "")


def _check_reported(paths: Sequence[str], new: Path, report: SubmissionReport) -> None:
    if not paths:
        return
    try:
        read_reported(new / ROOT)
    except UsageError as error:
        report.refuse(f"{ROOT}/reported", _plain(error, new / ROOT / "reported"))
    for path in paths:
        report.notes.append(f"{path}: hold its figures against the source that it names")


def _check_generated(
    changed: Sequence[str], new: Path, base: Path, registry: Registry, report: SubmissionReport
) -> None:
    """Generated files are what the records make, to the byte, or as they were."""
    root = new / ROOT
    try:
        runs = published(root, registry)
        wanted = {f"{ROOT}/{name}": text for name, text in texts(board(runs, root), root).items()}
        for page, fill in ((README, with_front), (RESULTS, with_section)):
            if (base / page).exists():
                wanted[page] = fill((base / page).read_text(encoding="utf-8"), runs, root)
    except UsageError as error:
        report.refuse(ROOT, _plain(error, root))
        return
    for path in changed:
        if _RUN_PAGE.fullmatch(path) and path not in wanted:
            report.refuse(path, "it is the page of a run that is not published")
    for path, text in wanted.items():
        if path not in changed:
            if not _RUN_PAGE.fullmatch(path):
                report.notes.append(f"{path} is not part of it; run `make board` after merging")
        elif (new / path).read_bytes() != text.encode("utf-8"):
            report.refuse(path, "it is not what the records make; run `make board`, edit nothing")

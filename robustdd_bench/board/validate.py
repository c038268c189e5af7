"""Is a board sound as it lies there? Every problem is found, not the first alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.board.admission.overlaps import DataAtHand
from robustdd_bench.board.admission.submission import (
    SUBMISSION_NAME,
    read_submission,
    statement_reasons,
)
from robustdd_bench.board.build import BOARD_NAME, board, stale_pages, texts
from robustdd_bench.board.confirmations import CONFIRMATIONS, run_of
from robustdd_bench.board.placing import STAGING
from robustdd_bench.board.publish import problems_of, published
from robustdd_bench.board.reported import read_reported_file, reported_files
from robustdd_bench.board.schema import BoardContent
from robustdd_bench.board.views.page import PAGE_NAME
from robustdd_bench.board.views.run_page import FOLDER
from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import RECORD_FILE, RESULTS_FOLDER
from robustdd_bench.files import parse_json
from robustdd_bench.plugins import Registry
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.text.tables import Column, Table, TableRow, plain

DIFFERENCES = 3
"""So many differences of leaderboard.json are named."""


@dataclass(frozen=True, slots=True)
class Defect:
    """Something that is wrong with a board."""

    place: str
    """A file or folder below the board's."""
    problem: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What was found."""

    runs: tuple[str, ...]
    """Folders of the published runs that are sound, below the board's."""
    problems: tuple[Defect, ...]

    def title(self) -> str:
        """The outcome in a line."""
        if not self.problems:
            return f"{len(self.runs)} published runs are valid"
        return f"{len(self.problems)} problems; {len(self.runs)} published runs are valid"

    def table(self) -> Table:
        """The problems."""
        return Table(
            (Column("place", "place", number=False), Column("problem", "problem", number=False)),
            tuple(TableRow((plain(item.place), plain(item.problem))) for item in self.problems),
            title=self.title(),
        )

    def content(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "valid": not self.problems,
            "runs": list(self.runs),
            "problems": [asdict(problem) for problem in self.problems],
        }


def validate(
    root: Path, registry: Registry | None = None, data: DataAtHand | None = None
) -> Validation:
    """Check every published run, the reported figures, and what was built from them.

    Args:
        root: the board's folder.
        registry: what is installed, which protocols are held against; None: they are not.
        data: the datasets, which sets are compared with; None: they are not.

    Raises:
        UsageError: there is no such folder.
    """
    if not root.is_dir():
        raise UsageError(f"no folder {root}")
    sound, problems = [], []
    protocols: dict[str, str] = {}
    for folder in _places(root / RESULTS_FOLDER):
        found = [
            _problem(root, path, text)
            for path, text in _run_problems(folder, root, protocols, registry, data)
        ]
        problems += found
        if not found:
            sound.append(folder.relative_to(root).as_posix())
    for path in reported_files(root):
        try:
            read_reported_file(path)
        except UsageError as error:
            problems.append(_problem(root, path, error))
    if problems:
        names = [name for name in (BOARD_NAME, PAGE_NAME) if (root / name).exists()]
        problems += [Defect(name, "not compared with the records, see above") for name in names]
    else:
        problems += _built_problems(root)
    return Validation(tuple(sound), tuple(problems))


def _places(results: Path) -> Iterator[Path]:
    """Folders of runs: those with a record, and those where one should be."""
    found = {path.parent for path in results.rglob(RECORD_FILE)}
    for pattern in ("*/*/*", f"*/*/*/{CONFIRMATIONS}/*"):
        found |= {path for path in results.glob(pattern) if path.is_dir()}
    return (path for path in sorted(found) if not any(p.startswith(STAGING) for p in path.parts))


def _run_problems(
    folder: Path,
    root: Path,
    protocols: dict[str, str],
    registry: Registry | None,
    data: DataAtHand | None,
) -> Iterator[tuple[Path, object]]:
    """File or folder and problem, of a run; `protocols` holds the tracks seen."""
    record: Record | None = None
    try:
        record = read_record(folder / RECORD_FILE)
    except UsageError as error:
        yield folder / RECORD_FILE, error
    if record is not None:
        found = problems_of(record, folder, root, protocols, registry)
        if data is not None:
            found = list(dict.fromkeys(found + data.reasons(record, folder)))
        yield from ((folder, text) for text in found)
    try:
        said = read_submission(folder)
    except UsageError as error:
        yield folder / SUBMISSION_NAME, error
    else:
        if record is not None:
            confirms = run_of(folder) is not None
            found = statement_reasons(record, said, confirms=confirms)
            yield from ((folder, text) for text in found)


def _built_problems(root: Path) -> Iterator[Defect]:
    """Whether what was built is what the records give."""
    try:
        runs = published(root)
    except UsageError as error:  # a rule that only the whole board can break
        yield _problem(root, root / RESULTS_FOLDER, error)
        return
    content = board(runs, root)
    value = content.model_dump(mode="json")
    files = texts(content, root)
    for path in stale_pages(root, files):
        yield Defect(
            f"{FOLDER}/{path.name}", "is of no published run; `robustdd board build` removes it"
        )
    for name, text in files.items():
        try:
            found = (root / name).read_bytes()
        except FileNotFoundError:
            if runs:
                yield Defect(name, "is missing; `robustdd board build` writes it")
            continue
        except OSError as error:
            yield Defect(name, f"cannot be read: {error.strerror or error}")
            continue
        if found != text.encode():
            why = _difference(found, root / name, value) if name == BOARD_NAME else ""
            yield Defect(
                name,
                f"is not what the records give: stale, or changed by hand{why}; "
                "`robustdd board build` writes it again",
            )


def _difference(found: bytes, path: Path, wanted: Any) -> str:
    """Where a leaderboard.json differs, or that it is none."""
    try:
        value = parse_json(found, path)
        BoardContent.model_validate(value, strict=False)
    except (UsageError, ValueError):
        return " (it is not a valid board)"
    places = list(_differing(value, wanted))
    more = f" and {len(places) - DIFFERENCES} more" if len(places) > DIFFERENCES else ""
    return f" ({', '.join(places[:DIFFERENCES])}{more})" if places else ""


def _differing(found: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Dotted places at which two JSON values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        for key in found:
            yield from _differing(found[key], wanted[key], f"{place}.{key}".lstrip("."))
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            yield from _differing(*pair, f"{place}.{number}".lstrip("."))
    elif found != wanted:
        yield place


def _problem(root: Path, path: Path, text: object) -> Defect:
    """A problem of a file or folder; the message names no place outside the board, nor its own."""
    place = path.relative_to(root).as_posix()
    message = str(text).replace(f"{root}{os.sep}", "")
    return Defect(place, message.removeprefix(f"{place}: ").removeprefix(f"{place} "))

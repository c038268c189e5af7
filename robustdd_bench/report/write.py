"""Writing a report: which format, which files, each of them whole or absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.errors import UsageError
from robustdd_bench.files import atomic_write, write_text
from robustdd_bench.report.content import make_report
from robustdd_bench.report.html import html
from robustdd_bench.report.markdown import markdown
from robustdd_bench.report.reading import read_run

FORMATS = {"html": ".html", "md": ".md"}
"""Formats and the end of their files' names."""
NAME = "report"


def target(out: Path | None, file_format: str | None) -> tuple[Path, str]:
    """Where a report goes, and in which format.

    Args:
        out: a file, a folder that exists, or None for the current folder.
        file_format: "html" or "md"; None: as the file's name says, else "html".

    Raises:
        UsageError: the name has another ending, contradicts the format, or its folder is missing.
    """
    if out is None or out.is_dir():
        file_format = file_format or "html"
        return (out or Path()) / f"{NAME}{FORMATS[file_format]}", file_format
    found = next((name for name, end in FORMATS.items() if out.suffix.lower() == end), None)
    if found is None:
        raise UsageError(
            f"--out {out}: a report's name ends in .html or .md, or is a folder that is there"
        )
    if file_format is not None and file_format != found:
        raise UsageError(f"--out {out} is no name for --format {file_format}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    return out, found


def write_report(
    folders: Sequence[Path], out: Path | None = None, file_format: str | None = None
) -> list[Path]:
    """Write the report of some runs.

    Args:
        folders: the runs' folders; one that is named twice is shown once.
        out: see `target`.
        file_format: see `target`.

    Returns:
        What was written: the report, then the files that it names.

    Raises:
        UsageError: no run is there, or the report cannot go where it shall.
        RunFailedError: the disk is full or the folder cannot be written.
    """
    path, kind = target(out, file_format)
    unique = {folder.resolve(): folder for folder in folders}
    report = make_report([read_run(folder) for folder in unique.values()])
    if kind == "html":
        write_text(path, html(report))
        return [path]
    made = markdown(report, f"{path.stem}_files")
    beside = path.parent / made.folder
    # The files first: a text that is there names no file that is not.
    for name, data in made.files.items():
        with atomic_write(beside / name) as file:
            file.write(data)
    write_text(path, made.text)
    return [path, *(beside / name for name in made.files)]

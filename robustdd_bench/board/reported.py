"""Figures that papers report, kept apart: marked wherever they are shown, never ranked.

Each file `reported/<name>.json` holds the figures of one source, as that source prints them: other
protocols, other students, other attacks, and nobody here has run them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from robustdd_bench.board.admission.strings import read_statement
from robustdd_bench.board.admission.submission import LINK_PATTERN, TEXT_PATTERN
from robustdd_bench.errors import UsageError
from robustdd_bench.strict import StrictModel

FOLDER = "reported"
MAX_BYTES = 2**20

Text = Annotated[str, Field(max_length=500, pattern=TEXT_PATTERN)]
Accuracy = Annotated[float, Field(ge=0, le=1)]


class ReportedRobust(StrictModel):
    """Accuracy under one attack."""

    norm: Literal["Linf", "L2"]
    eps: float = Field(gt=0)
    attack: Text
    accuracy: Accuracy


class ReportedFigure(StrictModel):
    """What a source says of one method in one setting."""

    method: Text
    dataset: Text
    ipc: int | None = Field(gt=0)
    """Images per class; None: the full data."""
    labels: Literal["hard", "soft"] = "hard"
    network: Text | None = None
    clean: Accuracy | None
    robust: tuple[ReportedRobust, ...] = ()
    where: Text | None = None
    """Table or figure of the source."""
    note: Text | None = None
    """What speaks against comparing it."""

    @model_validator(mode="after")
    def _says_something(self) -> ReportedFigure:
        if self.clean is None and not self.robust:
            raise ValueError("a figure needs a clean or a robust accuracy")
        return self


class Reported(StrictModel):
    """The figures of one source."""

    reported_version: Literal[1] = 1
    title: Text
    link: str = Field(max_length=500, pattern=LINK_PATTERN)
    year: int | None = Field(default=None, ge=1990, le=2200)
    note: Text | None = None
    figures: tuple[ReportedFigure, ...] = Field(min_length=1)


def reported_files(board: Path) -> list[Path]:
    """The files of reported figures of a board, by name."""
    return sorted((board / FOLDER).glob("*.json"))


def read_reported_file(path: Path) -> Reported:
    """The figures of one source.

    Raises:
        UsageError: the file is not valid.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", path.stem):
        raise UsageError(f"{path}: its name must be of a-z, 0-9 and hyphens")
    return read_statement(Reported, path, "a file of reported figures", MAX_BYTES)


def read_reported(board: Path) -> dict[str, Reported]:
    """Reported figures of a board, by the name of their file.

    Raises:
        UsageError: a file is not valid.
    """
    return {path.stem: read_reported_file(path) for path in reported_files(board)}

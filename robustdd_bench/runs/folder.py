"""The folder of a run: where each file lies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.filenames import CELLS_FOLDER, LOCK_FILE, SET_FILE
from robustdd_bench.files import TORN


class RunFolder:
    """Paths of a run's files.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def set_path(self) -> Path:
        """The distilled set."""
        return self.folder / SET_FILE

    def student_path(self, index: int) -> Path:
        """Where a trained student is."""
        return self.folder / CELLS_FOLDER / f"student-{index}.safetensors"

    def attack_path(self, name: str, group: Sequence[int]) -> Path:
        """Where the outcomes of an attack on a group of students are."""
        return self.folder / CELLS_FOLDER / f"attack-{name}-{label(group)}.json"

    def witness_path(self, name: str, group: Sequence[int]) -> Path:
        """Where the witnesses that an attack found are."""
        return self.folder / CELLS_FOLDER / f"witness-{name}-{label(group)}.safetensors"

    def sanity_path(self, index: int) -> Path:
        """Where the checks of a student are."""
        return self.folder / CELLS_FOLDER / f"sanity-{index}.json"


def label(group: Sequence[int]) -> str:
    """A group of students in the name of a file or cell: "3" or "0-4"."""
    return str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"


def forget(folder: Path) -> None:
    """Delete everything in a run's folder but its lock, which is held."""
    for path in folder.iterdir():
        if path.name == LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def delete_torn(folder: Path) -> None:
    """Delete half-written files of a process that was killed."""
    for path in folder.rglob(".*"):
        if TORN.fullmatch(path.name) and path.is_file():
            path.unlink()

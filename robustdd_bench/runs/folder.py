"""The folder of a run: where each file lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.filenames import CELLS_FOLDER, SET_FILE


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

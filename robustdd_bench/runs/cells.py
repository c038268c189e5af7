"""The cells of a run: experts, distillation, each student, each attack on each student.

A cell is a function of the plan, of the data and of files that earlier cells wrote. Its output is
one file, and beside it stands a receipt `<file>.cell.json`: which cell of which run it is for, the
hash of the output, the hash of everything the cell read, what it cost, and what process did it. A
cell whose receipt still holds is never run again; one whose output was damaged, whose inputs have
changed, or whose receipt is for another cell, is.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from robustdd_bench.files import file_sha256, write_json
from robustdd_bench.records.environment import process
from robustdd_bench.records.parts import Process

STAGES = ("experts", "distill", "students", "attacks", "sanity")
RECEIPT = ".cell.json"


class Receipt(BaseModel):
    """What is known of a cell that was done."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cell: str
    bound: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Hash of what the cell is and of the run or store it is for; none of older versions."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the output."""
    inputs_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of everything that was read."""
    wall_s: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    items: int = Field(ge=0)
    unit: str
    process: Process | None = None
    """What did the work; none of older versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One unit of work."""

    stage: str
    """One of `STAGES`."""
    name: str
    """Unique within the run, e.g. "attacks/3/pgd" or, of students 0 to 4, "attacks/0-4/pgd"."""
    output: Path
    inputs: tuple[Path, ...] = ()
    """Files of earlier cells that it reads."""
    data: tuple[str, ...] = ()
    """Hashes of the data it reads."""
    students: tuple[int, ...] = ()
    attack: str | None = None
    wave: int = 0
    """Cells of a stage wait for those of smaller waves, and for nothing else of their stage."""
    beside: tuple[Path, ...] = ()
    """Further files that it writes, which no later cell reads."""
    scope: str = ""
    """Whose it is: the id of the run, or the place in the store that runs share."""
    device: str = "cpu"
    """What it is computed on, "cpu" or "cuda"."""

    @property
    def bound(self) -> str:
        """What a receipt has to be for: a hash of this cell, other than that of any other."""
        what = [self.scope, self.stage, self.name, self.output.name, self.students, self.attack]
        return hashlib.sha256(json.dumps(what, separators=(",", ":")).encode()).hexdigest()

    @property
    def receipt_path(self) -> Path:
        """Where the receipt lies."""
        return self.output.with_name(self.output.name + RECEIPT)

    def receipt(self) -> Receipt | None:
        """The receipt, if the output is whole and was made of what is there now; else None."""
        found = read_receipt(self.receipt_path)
        try:
            if found is None or found.cell != self.name or found.bound not in (None, self.bound):
                return None
            if current_sha256(self.output) != found.sha256:
                return None
            if not all(path.is_file() for path in self.beside):
                return None
            return found if self.inputs_sha256() == found.inputs_sha256 else None
        except OSError:
            return None

    def done(self) -> bool:
        """Whether the cell need not be run."""
        return self.receipt() is not None

    def inputs_sha256(self) -> str:
        """Hash of everything the cell reads.

        Raises:
            OSError: an input is not there.
        """
        files = [(path.name, current_sha256(path)) for path in self.inputs]
        text = json.dumps([files, self.data], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def sign(self, *, wall_s: float, peak_bytes: int, items: int, unit: str) -> None:
        """Write the receipt: the output is there and whole."""
        receipt = Receipt(
            cell=self.name,
            bound=self.bound,
            sha256=current_sha256(self.output),
            inputs_sha256=self.inputs_sha256(),
            wall_s=round(wall_s, 6),
            peak_bytes=peak_bytes,
            items=items,
            unit=unit,
            process=process(self.device),
        )
        write_json(self.receipt_path, receipt.model_dump(mode="json"))


def read_receipt(path: Path) -> Receipt | None:
    """The receipt in a file; None if it is missing or damaged."""
    try:
        return Receipt.model_validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError):
        return None


def receipts_hold(folder: Path) -> bool:
    """Whether every output under a folder is still what its receipt says."""
    for path in folder.rglob(f"*{RECEIPT}"):
        receipt = read_receipt(path)
        output = path.with_name(path.name.removesuffix(RECEIPT))
        try:
            if receipt is None or current_sha256(output) != receipt.sha256:
                return False
        except OSError:
            return False
    return True


def current_sha256(path: Path) -> str:
    """Hash of a file; one that has not been touched since is not read again."""
    about = path.stat()
    return _sha256_of(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256_of(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    return file_sha256(path)

"""A distilled set from outside: the method behind `robustdd evaluate`.

The file is first copied into the shared store under its hash, so that the run's plan names the
content and not a path, and any executor can find it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import atomic_write, file_sha256
from robustdd_bench.toolkit.operations import Facts, MakingOperations


def store_set(path: Path, store: Path) -> str:
    """Copy a set into the store; return the hash of the file.

    Raises:
        UsageError: there is no such file, it is not a distilled set, or it is being written to.
        RunFailedError: the store cannot be written.
    """
    DistilledSet.load(path)
    digest = file_sha256(path)
    target = _stored(store, digest)
    if not target.exists() or file_sha256(target) != digest:
        with path.open("rb") as source, atomic_write(target) as copy:
            shutil.copyfileobj(source, copy)
        if file_sha256(target) != digest:
            raise UsageError(f"{path} changed while it was read")
    return digest


def store_imported(imported: DistilledSet, store: Path) -> str:
    """Put a set that was read from a foreign format into the store; return the hash of its file.

    It is the file that `robustdd convert` writes.

    Raises:
        RunFailedError: the store, or the folder for temporary files, cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "set.safetensors"
            imported.save(path)
            return store_set(path, store)
    except OSError as error:
        raise RunFailedError(f"cannot write a temporary file: {error}") from error


def check_fits(
    distilled: DistilledSet, shape_CHW: tuple[int, ...], num_classes: int, ipc: int | None
) -> None:
    """Raise UsageError unless a set is what a track asks for; see `DistilledSet.check`."""
    try:
        distilled.check(shape_CHW, num_classes, ipc)
    except RunFailedError as error:  # whoever gave the set can choose another
        raise UsageError(f"the set does not fit the track: {error}") from error


def _stored(store: Path, digest: str) -> Path:
    return store / "sets" / f"{digest}.safetensors"


class GivenSet(Distiller):
    """Evaluates a set that was made elsewhere."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Which set."""

        sha256: str = ""
        """Hash of the set's file; `robustdd evaluate FILE` fills it in."""

        def __post_init__(self) -> None:
            if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
                raise ValueError("sha256 must be the hash of a set's file")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Read the set from the store.

        Raises:
            UsageError: it is not there, was changed, or does not fit the track.
        """
        digest = self.config.sha256
        if not digest:
            raise UsageError("no set was given; use `robustdd evaluate FILE`")
        path = _stored(task.store_dir, digest)
        if not path.exists() or file_sha256(path) != digest:
            raise UsageError(f"the set {digest[:12]} is not in the store; evaluate its file again")
        found = DistilledSet.load(path)
        check_fits(found, tuple(task.images.shape[1:]), task.num_classes, task.ipc)
        return found

    def operations(self, facts: Facts) -> MakingOperations:
        """None: images are only read."""
        return MakingOperations()

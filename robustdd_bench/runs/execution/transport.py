"""Files of cells that travel, for executors whose workers share no folder with the run.

A cell reads the outputs of earlier cells and, where it resumes, its checkpoint; it leaves an
output, what lies beside it, and a receipt. All of them lie under `out`, and are known by their path
from there and by their hash. A receipt names no folder, so it holds wherever the files lie.

    travelling(out, read_by(cell))   # the driver: what a cell reads
    cache.add(...), place(...)       # the worker: under an `out` of its own
    cache.adopt(...)                 # the worker: what the cell has left
    receive(...)                     # the driver: written at once, or not at all

No part of this imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import Cell, current_sha256
from robustdd_bench.filenames import WORK_FOLDER
from robustdd_bench.files import TORN, atomic_write, file_sha256
from robustdd_bench.runs.execution.limits import RESUMES

PIECE = 8 * 2**20
"""Bytes of a file that travel at once."""
CACHE_BYTES = 20 * 2**30
"""What a cache keeps of what is not in use; the files used last."""


class TravellingFile(NamedTuple):
    """A file by its place and by what it holds."""

    path: str
    """From `out`, with slashes."""
    sha256: str
    size: int


class DamagedFileError(RunFailedError):
    """A file that arrived is not the one that was sent, or wants to go where it must not."""


def checkpoint_folder(cell: Cell) -> Path | None:
    """Where a cell keeps what it resumes from; None where it begins anew."""
    return cell.output.parent / WORK_FOLDER if cell.stage == RESUMES else None


def read_by(cell: Cell) -> list[Path]:
    """The files that a cell reads: its inputs and its checkpoint."""
    folder = checkpoint_folder(cell)
    return [*cell.inputs, *(() if folder is None else files_in(folder))]


def left_by(cell: Cell) -> list[Path]:
    """The files that a cell leaves, the receipt last: it says that the others are whole."""
    return [*cell.beside, cell.output, cell.receipt_path]


def files_in(folder: Path) -> list[Path]:
    """The files under a folder, those that were written first before others."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not TORN.fullmatch(path.name):
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def travelling(out: Path, paths: Iterable[Path]) -> list[TravellingFile]:
    """Files under `out` as they travel.

    Raises:
        OSError: one is not there.
    """
    return [
        TravellingFile(relative(out, path), current_sha256(path), path.stat().st_size)
        for path in paths
    ]


def relative(out: Path, path: Path) -> str:
    """A path from `out`, as it travels."""
    return path.relative_to(out).as_posix()


def inside(out: Path, path: str) -> Path:
    """The place under `out` of a file that has arrived.

    Raises:
        DamagedFileError: it is none.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise DamagedFileError(f"a file must lie in the run's folders, not at {path!r}")
    return out.joinpath(*parts)


def receive(out: Path, file: TravellingFile, pieces: Iterable[bytes]) -> Path:
    """Write a file that arrives, at once or not at all.

    Raises:
        DamagedFileError: it is not what was sent; what was there stays.
        RunFailedError: it cannot be written.
    """
    path = inside(out, file.path)
    with atomic_write(path) as target:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            target.write(piece)
        if digest.hexdigest() != file.sha256:
            raise DamagedFileError(f"{file.path} arrived damaged: its hash is another one")
    return path


def replace_checkpoint(
    out: Path, folder: Path, files: Sequence[TravellingFile], pieces: dict[str, Iterator[bytes]]
) -> None:
    """Let a folder hold what a worker has kept to resume from, and nothing else.

    The files are written in the order in which the worker wrote them, so that a kill in between
    leaves what a kill of the worker would have left.

    Args:
        out: the folder above.
        folder: where the checkpoint lies.
        files: what the worker has; see `FileCache.snapshot`.
        pieces: the contents by path, of those that differ from what is there.

    Raises:
        DamagedFileError: a file is not what was sent, or lies elsewhere.
    """
    for file in files:
        if not inside(out, file.path).is_relative_to(folder):
            raise DamagedFileError(f"{file.path} is no part of a checkpoint")
        if file.path in pieces:
            receive(out, file, pieces[file.path])
    named = {file.path for file in files}
    for path in files_in(folder):
        if relative(out, path) not in named:
            path.unlink(missing_ok=True)


def holds(out: Path, file: TravellingFile) -> bool:
    """Whether a file lies under `out` already."""
    try:
        return current_sha256(inside(out, file.path)) == file.sha256
    except OSError:
        return False


def pieces_of(path: Path) -> Iterator[bytes]:
    """The content of a file, a piece after the other."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


class FileCache:
    """Files by their hashes, which the workers of a machine share.

    Args:
        folder: where they lie.
        most: bytes that it keeps of what has not been used for longest.
    """

    def __init__(self, folder: Path, most: int = CACHE_BYTES) -> None:
        self._folder, self._most = folder, most
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a file lies, or would."""
        return self._folder / sha256

    def has(self, sha256: str) -> bool:
        """Whether a file is there; if so it counts as used."""
        try:
            os.utime(self.path(sha256))
        except OSError:
            return False
        return True

    def add(self, file: TravellingFile, pieces: Iterable[bytes]) -> None:
        """Take a file that arrives.

        Raises:
            DamagedFileError: it is not what was sent.
            RunFailedError: it cannot be written.
        """
        self._make_room(file.size)
        receive(self._folder, file._replace(path=file.sha256), pieces)

    def adopt(self, out: Path, path: Path) -> TravellingFile:
        """Take a copy of a file that a cell has written.

        Raises:
            OSError: it is not there, or cannot be copied.
        """
        descriptor, name = tempfile.mkstemp(prefix=".adopted.", dir=self._folder)
        os.close(descriptor)
        try:
            shutil.copyfile(path, name)
            size = os.stat(name).st_size
            file = TravellingFile(relative(out, path), file_sha256(Path(name)), size)
            self._make_room(file.size)
            os.replace(name, self.path(file.sha256))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        return file

    def place(self, out: Path, file: TravellingFile) -> None:
        """Put a file where a cell reads it.

        Raises:
            DamagedFileError: there is no such place.
            OSError: it is not in the cache, or cannot be written.
        """
        path = inside(out, file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        shutil.copyfile(self.path(file.sha256), path)

    def read(self, sha256: str, offset: int) -> bytes:
        """A piece of a file.

        Raises:
            OSError: it is not there.
        """
        with self.path(sha256).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE)

    def snapshot(self, out: Path, folder: Path, tries: int = 20) -> list[TravellingFile] | None:
        """Copies of the files of a folder as they were at one moment; the first written first.

        Args:
            out: the folder above.
            folder: what a cell may be writing into.
            tries: how often to begin again where something changed meanwhile.

        Returns:
            The files; None where it never stood still.
        """
        for _ in range(tries):
            before = _state(folder)
            try:
                files = [self.adopt(out, path) for path in before]
            except FileNotFoundError:
                continue
            if _state(folder) == before:
                return files
        return None

    def _make_room(self, size: int) -> None:
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime_ns, about.st_size, path))
        room = self._most - size - sum(size for _, size, _ in found)
        for _, freed, path in sorted(found):
            if room >= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            room += freed


def _state(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What tells whether any file of a folder was written."""
    found = {}
    for path in files_in(folder):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            found[path] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found

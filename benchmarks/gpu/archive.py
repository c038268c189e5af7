"""What a call brings back of its runs: one tar, split into files of a limited size, and back again.

A machine that is lost after a call gives back a few small files. `choose` ranks what is worth one,
`pack` writes as much of it as fits, and `unpack` lays it where the next call goes on from it.
"""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from robustdd_bench.runs.cells import RECEIPT
from robustdd_bench.runs.cleaning import recorded_status

NAME = "rows.tar"
_BLOCK, _HEADERS, _END = 512, 3 * 512, 2 * tarfile.RECORDSIZE


def choose(root: Path, folders: Sequence[Path], *, students: bool, experts: bool) -> list[Path]:
    """The files to bring back, the dearest first.

    Records, then what else there is of runs that ended, then all of those that did not (weights and
    checkpoints too: they go on from there), then stored experts, the newest first.

    Args:
        root: the output folder of the runs.
        folders: the folders of the runs.
        students: keep the weights of students of runs that ended.
        experts: keep the store.
    """
    ended = [folder for folder in folders if recorded_status(folder) == "complete"]
    begun = [folder for folder in folders if folder not in ended and folder.is_dir()]
    found = [folder / "record.json" for folder in ended]
    found += [path for folder in ended for path in _files(folder) if students or _light(path)]
    found += [path for folder in begun for path in _files(folder)]
    if experts:
        found += sorted(_files(root / "store"), key=lambda path: -_output(path).stat().st_mtime)
    return list(dict.fromkeys(found))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def _output(path: Path) -> Path:
    """The file that a receipt is of, or the file itself; it is there."""
    output = path.with_name(path.name.removesuffix(RECEIPT))
    return output if output.is_file() else path


def _light(path: Path) -> bool:
    """Whether a file of a finished run is none of a student's weights, nor their receipt."""
    name = path.name.removesuffix(RECEIPT)
    weights = path.parent.name == "cells" and name.startswith("student-")
    return not (weights and name.endswith(".safetensors"))


def pack(
    root: Path, paths: Sequence[Path], out: Path, *, most_bytes: int, most_files: int
) -> tuple[list[str], list[str]]:
    """Write files into `out`/rows.tar, rows.tar.1, ..., in place of those of an earlier packing.

    Args:
        root: names in the tar are relative to it.
        paths: files below it, the dearest first.
        out: where to.
        most_bytes: size of a file at most.
        most_files: how many of them at most.

    Returns:
        The names that are in it, and those for which there was no room.
    """
    room = most_bytes * most_files - _END
    taken: list[Path] = []
    dropped: set[Path] = set()
    for path in paths:
        # A receipt without the file that it is of would say that the file is damaged.
        output = _output(path)
        size = _HEADERS + -(-path.stat().st_size // _BLOCK) * _BLOCK
        if output in dropped or size > room:
            dropped.add(path)
        else:
            taken.append(path)
            room -= size
    out.mkdir(parents=True, exist_ok=True)
    parts = _Parts(out / NAME, most_bytes)
    with tarfile.open(fileobj=parts, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for path in taken:
            tar.add(path, arcname=path.relative_to(root).as_posix(), recursive=False)
    parts.close()

    def names(found: Sequence[Path]) -> list[str]:
        return [path.relative_to(root).as_posix() for path in found]

    return names(taken), names([path for path in paths if path in dropped])


def unpack(first: Path, root: Path) -> int:
    """Lay the files of a tar, with the parts beside it, below a folder.

    What is there already stays: it is newer.

    Returns:
        How many files were laid there.

    Raises:
        tarfile.TarError: it is no tar, ends too early (a part is missing), or is not one of ours.
        OSError: it cannot be read.
    """
    root.mkdir(parents=True, exist_ok=True)
    laid = 0

    def missing(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo | None:
        nonlocal laid
        kept = tarfile.data_filter(member, where)
        if (root / kept.name).exists():
            return None
        laid += 1
        return kept

    with _Joined(first) as joined:
        with tarfile.open(fileobj=joined, mode="r|") as tar:
            tar.extractall(root, filter=missing)
        if joined.rest().strip(b"\0"):
            raise tarfile.ReadError(f"{first} ends too early: a part beside it is missing")
    return laid


def _part_names(first: Path) -> Iterator[Path]:
    yield first
    for number in itertools.count(1):
        yield first.with_name(f"{first.name}.{number}")


class _Parts:
    """A file that goes on in another one when it is full."""

    def __init__(self, first: Path, most_bytes: int) -> None:
        self._names = _part_names(first)
        self._most, self._left = most_bytes, 0
        self._written: list[Path] = []

    def write(self, content: bytes) -> int:
        view = memoryview(content)
        while view:
            if self._left == 0:
                self._written.append(next(self._names))
                self._temporary(self._written[-1]).write_bytes(b"")
                self._left = self._most
            piece, view = view[: self._left], view[self._left :]
            with self._temporary(self._written[-1]).open("ab") as file:
                file.write(piece)
            self._left -= len(piece)
        return len(content)

    def close(self) -> None:
        """Put the parts in place of the earlier ones."""
        for path in self._written:
            os.replace(self._temporary(path), path)
        for path in itertools.takewhile(Path.exists, self._names):
            path.unlink()

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f".{path.name}")


class _Joined:
    """The parts read as one file."""

    def __init__(self, first: Path) -> None:
        self._parts = itertools.takewhile(Path.exists, _part_names(first))
        self._file = first.open("rb")
        next(self._parts)
        self._last = b""

    def __enter__(self) -> _Joined:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        found = self._file.read(size)
        while len(found) < size:
            path = next(self._parts, None)
            if path is None:
                break
            self._file.close()
            self._file = path.open("rb")
            found += self._file.read(size - len(found))
        self._last = (self._last + found)[-2 * _BLOCK :]
        return found

    def rest(self) -> bytes:
        """The last bytes of the last part: zeros at the end of a tar."""
        while self.read(tarfile.RECORDSIZE):
            pass
        return self._last

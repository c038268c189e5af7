"""The files of a queue, as both ends read and write them.

Everything is written under another name first, or appended to by one process alone. Nothing that
was removed is made again: what writes into a removed attempt gets an OSError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import (
    ANSWER_FILE,
    CANCEL_FILE,
    EVENTS_FILE,
    LEASE_FILE,
    NOTES_FILE,
    QUEUE_FOLDER,
    REQUEST_FILE,
)

VISIBLE_S = 60.0
"""Seconds until files that another machine wrote are seen here; NFS may keep older answers."""
Fields = Mapping[str, Any]
_UMASK = os.umask(0)
os.umask(_UMASK)


class Attempt:
    """The folder of one attempt to compute a cell.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The folder's name; names are in the order in which cells are wanted."""
        return self.path.name

    @property
    def key(self) -> str:
        """What attempts to compute the same cell for the same message have in common."""
        return self.name.split("-")[1]

    def request(self) -> dict[str, Any] | None:
        """What is to be computed; None once the attempt is gone."""
        return read(self.path / REQUEST_FILE)

    def files(self) -> frozenset[str] | None:
        """What there is of it now; None once the attempt is gone.

        To list a folder asks the server; whether a file exists NFS may answer from memory.
        """
        try:
            return frozenset(os.listdir(self.path))
        except OSError:
            return None

    def answer(self) -> dict[str, Any] | None:
        """How it ended; None before that."""
        found = self.files()
        return read(self.path / ANSWER_FILE) if found and ANSWER_FILE in found else None

    def is_taken(self) -> bool:
        """Whether a worker has it or had it, or it is gone."""
        found = self.files()
        return found is None or LEASE_FILE in found

    def take(self, holder: Fields) -> bool:
        """Take it, if no other worker has.

        Args:
            holder: who does; see `this_process`.
        """
        lease = self.path / LEASE_FILE
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=".lease.", dir=self.path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_line(holder))
                file.flush()
                _to_disk(file.fileno())
            os.chmod(temporary, 0o666 & ~_UMASK)
            return _linked(temporary, lease) or _first(lease, _line(holder))
        except OSError:  # another one has it, or it is gone
            return False
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def lease(self) -> tuple[dict[str, Any] | None, int]:
        """Who has it, None if that is not known, and a size that grows while it is held, else 0."""
        try:
            with (self.path / LEASE_FILE).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                first = file.readline()
        except OSError:
            return None, 0
        return _parsed(first), max(1, size)

    def beat(self, count: int) -> bool:
        """Say that it is still held.

        Returns:
            Whether it is still wanted.

        Raises:
            OSError: it is gone, or cannot be written.
        """
        append(self.path / LEASE_FILE, _line({"beat": count}), make=False)
        return CANCEL_FILE not in os.listdir(self.path)

    def tell(self, lines: bytes) -> None:
        """Append events.

        Args:
            lines: whole lines of JSON.

        Raises:
            OSError: it is gone, or cannot be written.
        """
        append(self.path / EVENTS_FILE, lines)

    def heard(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The events from an offset on, and the offset behind them."""
        try:
            with (self.path / EVENTS_FILE).open("rb") as file:
                file.seek(offset)
                content = file.read()
        except OSError:
            return [], offset
        whole = content[: content.rfind(b"\n") + 1]
        parsed = map(_parsed, whole.splitlines())
        return [event for event in parsed if event is not None], offset + len(whole)

    def end(self, answer: Fields) -> None:
        """Say how it ended.

        Raises:
            OSError: it is gone, or cannot be written.
        """
        put(self.path / ANSWER_FILE, answer)

    def cancel(self) -> None:
        """Say that it is not wanted any more."""
        with contextlib.suppress(OSError):
            put(self.path / CANCEL_FILE, {})

    def notes(self) -> int:
        """How many of its notes are in the run's log."""
        return int((read(self.path / NOTES_FILE) or {}).get("notes", 0))

    def keep_notes(self, count: int) -> None:
        """Remember how many of its notes are in the run's log."""
        with contextlib.suppress(OSError):
            put(self.path / NOTES_FILE, {"notes": count})


class QueueFolder:
    """The queue of an output folder.

    Args:
        out: the folder under which runs and the shared store live.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.root = self.out / QUEUE_FOLDER
        self.cells = self.root / "cells"
        self.messages = self.root / "messages"
        self.drivers = self.root / "drivers"
        self.workers = self.root / "workers"
        self._gone = self.root / "gone"

    def make(self) -> None:
        """Make the folders.

        Raises:
            UsageError: that cannot be done.
        """
        try:
            for folder in (self.cells, self.messages, self.drivers, self.workers, self._gone):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make {self.root}: {error.strerror or error}; see --out"
            ) from error

    def keep_message(self, message: Fields) -> str:
        """Write a message, if it is not there; its hash.

        Raises:
            OSError: it cannot be written.
        """
        text = json.dumps(message, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = self.messages / f"{digest}.json"
        if not path.exists():
            put(path, message)
        return digest

    def message(self, digest: str) -> dict[str, Any] | None:
        """A message by its hash; None if it is gone."""
        return read(self.messages / f"{digest}.json")

    def post(self, number: int, key: str, request: Fields) -> Attempt:
        """Offer a cell to workers.

        Args:
            number: cells with a lower one are taken first.
            key: see `Attempt.key`.
            request: what is to be computed.

        Raises:
            OSError: it cannot be written.
        """
        made = Path(tempfile.mkdtemp(prefix="new-", dir=self._gone))
        os.chmod(made, 0o777 & ~_UMASK)
        put(made / REQUEST_FILE, request)
        path = self.cells / f"{number:08d}-{key}-{uuid.uuid4().hex[:8]}"
        os.rename(made, path)
        return Attempt(path)

    def attempts(self) -> list[Attempt]:
        """All attempts, those to be taken first before others."""
        return [Attempt(self.cells / name) for name in _names(self.cells) if name.count("-") == 2]

    def remove(self, attempt: Attempt) -> None:
        """Remove an attempt at once; whoever computes it will see."""
        aside = self._gone / f"{attempt.name}-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            os.rename(attempt.path, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what is left of what was removed, and messages that nothing asks for."""
        for name in _names(self._gone):
            shutil.rmtree(self._gone / name, ignore_errors=True)
        requests = [attempt.request() for attempt in self.attempts()]
        wanted = {f"{request['message']}.json" for request in requests if request}
        for name in _names(self.messages):
            if name not in wanted:
                with contextlib.suppress(OSError):
                    (self.messages / name).unlink()

    def entries(self, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """The readable files of `drivers` or `workers`: id and content."""
        for name in _names(folder):
            if name.endswith(".json"):
                fields = read(folder / name)
                if fields is not None:
                    yield name.removesuffix(".json"), fields


def put(path: Path, fields: Fields) -> None:
    """Write a file of JSON whole; its folder must be there.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_line(fields))
            file.flush()
            _to_disk(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: Path) -> dict[str, Any] | None:
    """The object in a file of JSON; None if it is missing or damaged."""
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def append(path: Path, content: bytes, *, make: bool = True) -> None:
    """Append to a file that only this process writes.

    Args:
        path: the file; its folder must be there.
        content: what to append.
        make: make the file if it is missing.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if make else 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)  # NFS writes now; others see it from now on


def _line(fields: Fields) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _to_disk(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system that cannot
        os.fsync(descriptor)


def _linked(temporary: str, lease: Path) -> bool:
    """Whether the file has the lease's name now; False where the file system has no links.

    Raises:
        FileExistsError: another one has it.
    """
    try:
        os.link(temporary, lease)
    except FileExistsError:
        if os.stat(temporary).st_nlink == 2:  # NFS did it and lost the answer
            return True
        raise
    except OSError:
        return False
    return True


def _first(lease: Path, content: bytes) -> bool:
    """Make the lease where there are no links; also an OSError says that another one has."""
    descriptor = os.open(lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []

"""Files that are whole or absent: atomic writes, hashes, safetensors with a clear error."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from robustdd_bench.errors import RunFailedError, UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor


TORN = re.compile(r"\..+\.[a-z0-9_]{8}")
"""What `atomic_write` leaves behind if it is killed between its two steps."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on success it takes the place of `path` at once.

    Raises:
        RunFailedError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RunFailedError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def shown(path: Path) -> str:
    """A path for a message: from the working directory where it lies in it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any) -> str:
    """A value as the text of a JSON file, keys sorted; NaN and infinity are refused."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json_text(value))


def write_changed(texts: Mapping[Path, str]) -> None:
    """Write the texts that differ from what is there: all of them, or none.

    Raises:
        RunFailedError: one cannot be written; all are as they were.
    """
    with ExitStack() as files:
        for path, text in texts.items():
            content = text.encode("utf-8")
            if path.is_file() and path.read_bytes() == content:
                continue
            file = files.enter_context(atomic_write(path))
            file.write(content)
            # A full disk has to show here, before the first of them takes its place.
            file.flush()
            os.fsync(file.fileno())


def file_lock(path: Path, timeout_s: float) -> BaseFileLock | None:
    """A held lock, to be released; the system lets it go when the process dies.

    Args:
        path: the lock's file, which stays.
        timeout_s: how long to wait for another process.

    Returns:
        The lock; None if another process held it all the time.

    Raises:
        OSError: the file cannot be written.
    """
    import filelock

    logging.getLogger("filelock").setLevel(logging.WARNING)
    lock = filelock.FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    return lock


def require_regular(path: Path) -> None:
    """Refuse what is there and is no regular file: reading a pipe or a device may never end.

    Raises:
        UsageError: it is a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # it is missing, or cannot be named: opening it says so
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder says that it is one
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise UsageError(f"{path} is {kind}, not a regular file")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: the file is missing, no regular file, or not JSON (NaN and infinity are not).
    """
    require_regular(path)
    try:
        return parse_json(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise UsageError(f"no file {path}") from error
    except OSError as error:
        raise UsageError(f"{path} is not readable JSON: {error.strerror or error}") from error


def parse_json(content: bytes, path: Path) -> Any:
    """The JSON value of a file's content; `path` is for messages.

    Raises:
        UsageError: it is not JSON; NaN, infinity and numbers that overflow to it are not, nor an
            object that names a key twice, of which every reader takes another one.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not allowed")

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            raise ValueError(f"key {twice[:100]!r} stands there twice")
        return found

    try:
        return json.loads(
            content.decode("utf-8"),
            parse_constant=refuse,
            parse_float=finite,
            object_pairs_hook=once,
        )
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}") from error


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors atomically, from any device; the same values give the same bytes."""
    from safetensors.torch import save

    data: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        storage = copy.untyped_storage().data_ptr()
        if storage in storages:  # safetensors refuses tensors that share memory
            copy = copy.clone()
        storages.add(storage)
        data[name] = copy
    content = save(data, metadata=dict(metadata or {}))
    size = int.from_bytes(content[:8], "little")
    header = _sorted_header(content[8 : 8 + size])
    with atomic_write(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        file.write(memoryview(content)[8 + size :])


def _sorted_header(header: bytes) -> bytes:
    """The same header with its metadata in order: safetensors writes them in a random one."""
    entries = json.loads(header)
    entries["__metadata__"] = dict(sorted(entries.get("__metadata__", {}).items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return text + b" " * (-len(text) % 8)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a file.

    Raises:
        UsageError: the file is missing, no regular file, or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    require_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise UsageError(f"no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from error

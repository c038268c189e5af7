"""Computes cells on a machine of the cluster, in a worker process of its own.

An actor holds one of these. It is a relay: torch, the plugins and the cell are in the process, so a
crash there costs a cell and no actor, and all executors compute in the same program. Its methods
are called from several threads at once.

Folders: `<tmp>/robustdd-ray-<user>/<session>-<node>` holds the cache that the actors of a node
share, and an `out` for each actor, of which a held lock tells that it lives. What dead ones have
left is removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from robustdd_bench.errors import RobustDDError
from robustdd_bench.files import file_lock
from robustdd_bench.records.means import DATA_VARIABLE
from robustdd_bench.runs.execution.link import GRACE_S, LostWorkerError, WorkerProcess
from robustdd_bench.runs.execution.transport import (
    FileCache,
    TravellingFile,
    files_in,
    holds,
    inside,
)

KEEP_S = 30.0
"""Seconds between two looks at a checkpoint."""
EVENTS_S = 0.2
"""Seconds in which events are gathered."""
LOCK_S = 60.0


class Node:
    """One worker process on a machine, and the machine's files.

    Args:
        session: of the driver.
        node: the machine's id.
        variables: of the environment: what the worker gets beside what is there; None: not.
        fetch: gets what a reference stands for.

    Raises:
        OSError, RobustDDError: the folders cannot be made.
    """

    def __init__(
        self,
        session: str,
        node: str,
        variables: Mapping[str, str | None],
        fetch: Callable[[Any], bytes],
    ) -> None:
        self._fetch = fetch
        self._environment = {**os.environ, **{k: v for k, v in variables.items() if v is not None}}
        for name in (name for name, value in variables.items() if value is None):
            self._environment.pop(name, None)
        self._root = user_folder()
        self._folder = self._root / f"{session}-{node[:16]}"
        name = f"{os.getpid()}-{os.urandom(4).hex()}"
        with _alone(self._root):
            remove_dead(self._root)
            self._folder.mkdir(exist_ok=True)
            self._alive = _held(self._folder / f"{name}.lock")
        self._out = self._folder / name
        self._out.mkdir()
        self._cache = FileCache(self._folder / "files")
        self._changed = threading.Condition()
        self._process: WorkerProcess | None = None
        self._events: list[dict[str, Any]] = []
        self._answer: dict[str, Any] | None = None
        self._kept: Path | None = None
        self._told: list[TravellingFile] | None = None
        self._looked = 0.0
        self._run = ""
        self._closed = False

    def hello(self) -> dict[str, Any]:
        """Start the worker process.

        Returns:
            "fingerprint": what is installed; or "problem": why that cannot be told.
        """
        try:
            return {"fingerprint": self._worker().fingerprint()}
        except (LostWorkerError, RobustDDError, OSError) as error:
            return {"problem": f"its worker process cannot start: {error}"}

    def _worker(self) -> WorkerProcess:
        with self._changed:
            if self._closed:
                raise LostWorkerError("the executor was left")
            if self._process is None:
                self._process = WorkerProcess(environment=self._environment)
            return self._process

    def missing(self, files: Iterable[tuple[str, str, int]]) -> list[str]:
        """The hashes of those files that the machine does not have."""
        return [sha256 for _, sha256, _ in files if not self._cache.has(sha256)]

    def begin(
        self,
        request: Mapping[str, Any],
        files: Iterable[tuple[str, str, int]],
        pieces: Mapping[str, Sequence[Any]],
    ) -> None:
        """Begin a cell; `poll` tells of it.

        Args:
            request: "message" and "cell" for the worker; "run"; "leaves", the paths of what the
                cell writes; "keeps", the folder of its checkpoint, or None; "data", the hash of the
                file that holds the data, or None.
            files: what the cell reads, and the data.
            pieces: references to the pieces of those that are missing, by hash.

        Raises:
            OSError, RobustDDError: a file cannot be placed.
        """
        found = [TravellingFile(*file) for file in files]
        for file in found:
            if file.sha256 in pieces and not self._cache.has(file.sha256):
                self._cache.add(file, map(self._fetch, pieces[file.sha256]))
        data = request["data"]
        placed = [file for file in found if file.sha256 != data]
        keeps = None if request["keeps"] is None else inside(self._out, request["keeps"])
        self._tidy(request["run"], keeps, {file.path for file in placed})
        for file in placed:
            if not holds(self._out, file):
                self._cache.place(self._out, file)
        message = {
            **request["message"],
            "out": str(self._out),
            "data_root": self._environment.get(DATA_VARIABLE) or request["message"]["data_root"],
            "data_file": None if data is None else str(self._cache.path(data)),
        }
        with self._changed:
            self._events, self._answer, self._kept = [], None, keeps
            self._told, self._looked = None, time.monotonic()
        sent = {"message": message, "cell": request["cell"]}
        threading.Thread(target=self._compute, args=(sent, request["leaves"]), daemon=True).start()

    def _tidy(self, run: str, keeps: Path | None, needed: set[str]) -> None:
        """Remove what earlier cells have left: of other runs, and older checkpoints."""
        folders = [self._out] if run != self._run else [] if keeps is None else [keeps]
        for folder in folders:
            for path in files_in(folder):
                if path.relative_to(self._out).as_posix() not in needed or folder == keeps:
                    path.unlink()
        self._run = run

    def _compute(self, sent: Mapping[str, Any], leaves: Sequence[str]) -> None:
        try:
            answer = self._worker().ask(sent, self._tell)
            if "receipt" in answer:
                paths = [inside(self._out, path) for path in leaves]
                answer["files"] = [tuple(self._cache.adopt(self._out, path)) for path in paths]
        except LostWorkerError as error:
            answer = {"lost": str(error)}
            with self._changed:
                process, self._process = self._process, None
            if process is not None:
                process.end(0.0)
                process.close()
        except (OSError, RobustDDError) as error:
            answer = {"lost": f"its files cannot be kept: {error}"}
        if "receipt" not in answer:
            answer["checkpoint"] = self._checkpoint()
        with self._changed:
            self._answer = answer
            self._changed.notify_all()

    def _tell(self, event: dict[str, Any]) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _checkpoint(self) -> list[TravellingFile] | None:
        """The checkpoint, where there is one that was not told of yet."""
        if self._kept is None:
            return None
        try:
            found = self._cache.snapshot(self._out, self._kept)
        except (OSError, RobustDDError):  # the disk is full; there will be another
            return None
        if not found or found == self._told:
            return None
        self._told = found
        return found

    def poll(self, timeout_s: float) -> dict[str, Any]:
        """Wait for something to tell.

        Args:
            timeout_s: how long.

        Returns:
            "events": what the cell told since; "checkpoint": its files, or None where they are as
            they were; "answer": how it ended, with its files, or None.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._answer, timeout_s)
            if self._answer is None:
                self._changed.wait_for(
                    lambda: self._answer, min(EVENTS_S, max(0.0, until - time.monotonic()))
                )
            events, self._events = self._events, []
            answer = self._answer
        checkpoint = None
        if answer is not None:
            checkpoint = answer.pop("checkpoint", None)
        elif time.monotonic() - self._looked >= KEEP_S:
            checkpoint, self._looked = self._checkpoint(), time.monotonic()
        return {
            "events": events,
            "checkpoint": None if checkpoint is None else [tuple(file) for file in checkpoint],
            "answer": answer,
        }

    def read(self, sha256: str, offset: int) -> bytes:
        """A piece of a file."""
        return self._cache.read(sha256, offset)

    def interrupt(self) -> None:
        """Interrupt the cell, as Ctrl-C does."""
        with self._changed:
            process = self._process
        if process is not None and process.busy:
            process.interrupt()

    def close(self) -> None:
        """End the worker process and remove what there is of this actor."""
        with self._changed:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.end(time.monotonic() + (0.0 if process.busy else min(1.0, GRACE_S)))
            process.close()
        with _alone(self._root):
            if self._alive is not None:
                self._alive.release()
            shutil.rmtree(self._out, ignore_errors=True)
            remove_dead(self._root)


def user_folder() -> Path:
    """The folder of this user for temporary files of the cluster's.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"robustdd-ray-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or (hasattr(os, "getuid") and about.st_uid != user):
        raise PermissionError(f"{folder} is no folder of this user")
    return folder


def _held(path: Path) -> filelock.BaseFileLock | None:
    """A lock that any thread may let go; None where another process holds it."""
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        return lock.acquire().lock
    except filelock.Timeout:
        return None


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """While folders come and go."""
    lock = file_lock(root / ".lock", LOCK_S)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def remove_dead(root: Path) -> None:
    """Remove the folders of actors that live no more, and of nodes that have none."""
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        alive = False
        for path in folder.glob("*.lock"):
            lock = _held(path)
            if lock is None:
                alive = True
                continue
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            lock.release()
            path.unlink(missing_ok=True)
        if not alive:
            shutil.rmtree(folder, ignore_errors=True)

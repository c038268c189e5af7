"""The executor: hands cells to Ray's driver, a process beside this one, and hears of them.

It sends, JSON values: {"address", "most", "store_bytes", "session"} first; {"job", "cell", ...} for
each cell, see `_request`; {"data", "file" or "failed"}; {"stop": seconds}. It hears {"ready"} or
{"refused"}; {"nodes"}; of a job {"event"}, {"note"}, {"wants"}, and in the end {"receipt"},
{"failed"} or {"lost"}; {"ended"} when nothing can be computed any more.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Self

from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.executors import (
    Cell,
    CellFailedError,
    Executor,
    ExecutorEndedError,
    Job,
    Receipt,
)
from robustdd_bench.files import file_sha256
from robustdd_bench.runs.execution.link import (
    GRACE_S,
    LinkedProcess,
    LostWorkerError,
    receipt_in,
)
from robustdd_bench.runs.execution.transport import (
    checkpoint_folder,
    left_by,
    read_by,
    relative,
    travelling,
)
from robustdd_ray import INSTALL, installed
from robustdd_ray.fleet import NodeFacts, need_of, places

DRIVER = "robustdd_ray.driver"
START_S = 120.0
"""Seconds in which Ray must have started or connected."""
CLOSE_S = 10.0
"""Seconds for what follows an interruption: files are fetched, actors end."""
TAIL = 2000


class RayExecutor(Executor):
    """Cells on a Ray cluster, or on a local one over all cores or GPUs of this machine."""

    @settings
    class Config:
        """Options."""

        address: str = ""
        """The cluster: auto, HOST:PORT or ray://HOST:PORT; "": a local one, for this call."""
        max_workers: Annotated[int, Field(ge=0, le=4096)] = 0
        """Cells computed at once; 0: one for each GPU of the cluster, or on CPUs each core."""
        object_store_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 0
        """MiB of a local cluster's object store, at least 75; 0: Ray's choice."""

    slots = 2

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._options = self.Config() if config is None else config
        self.elsewhere = bool(self._options.address)
        if not installed():
            raise UsageError(f"the executor ray needs Ray: {INSTALL}")
        if 0 < self._options.object_store_mb < 75:
            raise UsageError("object_store_mb must be 0 or at least 75, the least that Ray takes")
        if self._options.object_store_mb and self._options.address:
            raise UsageError("object_store_mb is of a local cluster, without address")
        self._lock = threading.Lock()
        self._data_lock = threading.Lock()
        self._jobs: dict[int, tuple[Cell, Job, Future[Receipt]]] = {}
        self._ended: ExecutorEndedError | None = None
        self._nodes: list[NodeFacts] = []
        self._count = 0
        self._need: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        """Start Ray's driver and connect.

        Raises:
            ExecutorEndedError: there is no such cluster.
        """
        self._ended, self._jobs, self._need = None, {}, None
        self._said: IO[bytes] = tempfile.TemporaryFile()
        self._folder = tempfile.TemporaryDirectory(prefix="robustdd-ray-data-")
        self._data: dict[str, dict[str, Any]] = {}
        self._process = LinkedProcess(DRIVER, path=sys.path, stderr=self._said)
        self._left = threading.Event()
        first: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._listen, args=(first,), daemon=True)
        self._reader.start()
        try:
            self._connect(first)
        except BaseException:
            self._let_go(0.0)
            raise
        return self

    def _connect(self, first: queue.SimpleQueue[dict[str, Any]]) -> None:
        options = self._options
        with contextlib.suppress(OSError, ValueError):  # it has ended, and says why
            self._process.send(
                {
                    "address": options.address,
                    "most": options.max_workers,
                    "store_bytes": options.object_store_mb * 2**20,
                    "session": secrets.token_hex(8),
                }
            )
        until = time.monotonic() + START_S
        while True:
            try:
                found = first.get(timeout=0.2)  # in steps, so that Ctrl-C is heard
                break
            except queue.Empty:
                if time.monotonic() > until:
                    text = f"Ray has not started in {START_S:.0f} s{self._tail()}"
                    raise ExecutorEndedError(text) from None
        if "ready" not in found:
            raise ExecutorEndedError(
                str(found.get("refused", f"Ray's driver has ended{self._tail()}")), exit_code=2
            )
        self._hear_nodes(found["ready"])

    def _hear_nodes(self, nodes: list[list[Any]]) -> None:
        """The machines have changed; so does how many cells are submitted."""
        with self._lock:
            self._nodes = [NodeFacts(*node) for node in nodes]
            gpus, threads = self._need or (0, 1)
            room = places(self._nodes, need_of(gpus, threads, None, self._nodes))
            most = self._options.max_workers
            # One more, so that none waits for the pipeline between two cells.
            self.slots = max(1, min(room, most) if most else room) + 1

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Hand the cell to the driver.

        Raises:
            ExecutorEndedError: nothing can be computed any more.
        """
        future: Future[Receipt] = Future()
        if self._need is None:
            self._need = (cell.resources.gpus, cell.resources.threads)
            self._hear_nodes([list(node) for node in self._nodes])
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._count += 1
            number = self._count
            self._jobs[number] = (cell, job, future)
        try:
            self._process.send(_request(number, cell, job))
        except (OSError, ValueError):
            self._end(f"Ray's driver has ended{self._tail()}", 1)
        return future

    def _listen(self, first: queue.SimpleQueue[dict[str, Any]]) -> None:
        """Take what the driver tells, in a thread of its own."""
        with contextlib.suppress(OSError, ValueError):  # it was killed in the middle of a line
            for value in self._process.values():
                if "ready" in value or "refused" in value:
                    first.put(value)
                elif "nodes" in value:
                    self._hear_nodes(value["nodes"])
                elif "ended" in value:
                    self._end(value["ended"], value.get("exit_code", 1))
                elif "left" in value:
                    self._left.set()
                else:
                    self._hear(value)
        self._left.set()
        first.put({})
        how = self._process.how()
        self._end(f"the connection to the Ray cluster has ended ({how}){self._tail()}", 1)

    def _hear(self, value: Mapping[str, Any]) -> None:
        """What is told of a job."""
        with self._lock:
            found = self._jobs.get(value["job"])
        if found is None:
            return
        cell, job, future = found
        if "event" in value:
            job.events(cell, value["event"])
        elif "note" in value:
            job.events(cell, {"event": "note", "stage": cell.stage, "text": value["note"]})
        elif "wants" in value:
            giving = (value["wants"], job)
            threading.Thread(target=self._give_data, args=giving, daemon=True).start()
        else:
            with self._lock:
                self._jobs.pop(value["job"], None)
            try:
                if "lost" in value:
                    raise LostWorkerError(str(value["lost"]))
                receipt = receipt_in(value)
            except (CellFailedError, LostWorkerError) as error:
                _settle(future, error)
            else:
                future.set_result(receipt)

    def _give_data(self, key: str, job: Job) -> None:
        """Write the data of a run for a machine that lacks them; once for all machines."""
        with self._data_lock:
            if key not in self._data:
                path = Path(self._folder.name) / f"{len(self._data)}.safetensors"
                try:
                    job.write_data(path)
                    about = {"sha256": file_sha256(path), "size": path.stat().st_size}
                    self._data[key] = {"file": str(path), **about}
                except (RobustDDError, OSError) as error:
                    self._data[key] = {"failed": f"the data cannot be handed on: {error}"}
            with contextlib.suppress(OSError, ValueError):
                self._process.send({"data": key, **self._data[key]})

    def _end(self, text: str, exit_code: int) -> None:
        """Nothing is computed any more."""
        with self._lock:
            if self._ended is None:
                self._ended = ExecutorEndedError(text, exit_code)
            jobs, self._jobs = self._jobs, {}
        for _, _, future in jobs.values():
            _settle(future, self._ended)

    def _tail(self) -> str:
        """What the driver has said last, where it ended without a word for us."""
        with contextlib.suppress(OSError, ValueError):
            size = os.fstat(self._said.fileno()).st_size
            text = os.pread(self._said.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return f": {lines[-1]}"
        return ""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the actors; cells are interrupted, and their checkpoints are kept."""
        self._let_go(GRACE_S)

    def _let_go(self, grace_s: float) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._process.send({"stop": grace_s})
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: at once
                until = time.monotonic() + grace_s + CLOSE_S
                while not self._left.wait(0.1) and time.monotonic() < until:
                    continue
        self._process.end(time.monotonic() + 1.0)
        self._reader.join(GRACE_S)
        self._process.close()
        self._said.close()
        self._folder.cleanup()


def _settle(future: Future[Receipt], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _request(number: int, cell: Cell, job: Job) -> dict[str, Any]:
    """What the driver has to know of a cell."""
    out = Path(job.message["out"])
    keeps = checkpoint_folder(cell)
    resources = cell.resources
    return {
        "job": number,
        "cell": cell.name,
        "run": job.run_id,
        "message": dict(job.message),
        "out": str(out),
        "reads": travelling(out, read_by(cell)),
        "leaves": [relative(out, path) for path in left_by(cell)],
        "keeps": None if keeps is None else relative(out, keeps),
        "need": [resources.gpus, resources.threads, resources.memory_bytes],
    }

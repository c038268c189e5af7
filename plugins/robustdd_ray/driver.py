"""Ray's driver, a process of its own beside the one that plans: it moves files and cells.

It reads requests from stdin and answers on stdout, JSON values: see `Driver.take`. It ends when its
stdin does, and with it Ray ends the actors.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import ExecutorEndedError
from robustdd_bench.records.means import DATA_VARIABLE
from robustdd_bench.runs.execution.link import Link, LostWorkerError
from robustdd_bench.runs.execution.transport import (
    PIECE,
    DamagedFileError,
    TravellingFile,
    holds,
    inside,
    pieces_of,
    receive,
    replace_checkpoint,
)
from robustdd_ray.cluster import (
    Cluster,
    ConnectError,
    FullStoreError,
    LostHostError,
    wait_until_gone,
)
from robustdd_ray.fleet import Fleet, FleetWorker, Machines, need_of

POLL_S = 2.0
"""Seconds for which an actor waits for something to tell."""
GONE_TRIES = 6
GONE_S = 1.0
"""Seconds between two looks at the cluster's head; it is gone when it was missed so often."""
NODES_S = 5.0
"""Seconds between two looks at which machines there are."""
KEPT_BYTES = 2**30
"""What the object store keeps of inputs, for the next actor that lacks them."""
MOST_JOBS = 4096
TIDY_S = 5.0
"""Seconds in which actors may tidy up before they are killed."""
FOLLOWED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Variables that decide last bits: workers have them as the process that plans does."""
OURS = "ROBUSTDD_"
NOT_OURS = (DATA_VARIABLE,)
"""Of each machine."""


class Connection(Machines, Protocol):
    """What a driver needs of a cluster; `robustdd_ray.cluster.Cluster` is one."""

    def call(self, handle: Any, method: str, *arguments: Any, takes_s: float = 0.0) -> Any:
        """Call a method of an actor's node."""

    def put(self, piece: bytes) -> Any:
        """A reference to some bytes."""

    def close(self) -> None:
        """Let the cluster go."""


class References:
    """Files in the object store: references to their pieces, of the files used last.

    Args:
        put: puts a piece there.
        most: bytes that are kept.
    """

    def __init__(self, put: Callable[[bytes], Any], most: int = KEPT_BYTES) -> None:
        self._put, self._most = put, most
        self._kept: OrderedDict[str, tuple[int, list[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, sha256: str, path: Path) -> list[Any]:
        """References to the pieces of a file, which is read if it is not there yet.

        Args:
            sha256: its hash.
            path: where it lies.
        """
        with self._lock:  # also while it is read: other actors want the same
            if sha256 not in self._kept:
                size, found = path.stat().st_size, [self._put(piece) for piece in pieces_of(path)]
                self._kept[sha256] = (size, found)
            self._kept.move_to_end(sha256)
            refs = self._kept[sha256][1]
            while len(self._kept) > 1 and sum(s for s, _ in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
            return refs


class Driver:
    """Computes cells on a cluster.

    Args:
        cluster: the cluster.
        send: takes what is to be told: see `RayExecutor`.
        most: workers; 0: as many as there is room for.
        session: tells this driver from others.
    """

    def __init__(
        self, cluster: Connection, send: Callable[..., None], most: int, session: str
    ) -> None:
        self._cluster, self._send = cluster, send
        self._fleet = Fleet(cluster, session, variables(os.environ), most, self._say)
        self._references = References(cluster.put)
        self._pool = ThreadPoolExecutor(MOST_JOBS, thread_name_prefix="cells")
        self._data: dict[str, TravellingFile | str] = {}
        self._data_paths: dict[str, Path] = {}
        self._told = threading.Condition()
        self._last = 0
        self._computing: dict[int, FleetWorker] = {}
        self.stopping = False

    def take(self, request: Mapping[str, Any]) -> None:
        """Do what is asked for.

        Args:
            request: {"job": number, ...}: compute a cell; {"data": key, ...}: the file of data that
                were asked for.
        """
        if "job" in request:
            self._last = request["job"]
            self._pool.submit(self._job, request)
            return
        with self._told:
            if "failed" in request:
                self._data[request["data"]] = str(request["failed"])
            else:
                file = TravellingFile("data", request["sha256"], request["size"])
                self._data_paths[file.sha256] = Path(request["file"])
                self._data[request["data"]] = file
            self._told.notify_all()

    def _say(self, text: str) -> None:
        self._send(job=self._last, note=text)

    def _job(self, request: Mapping[str, Any]) -> None:
        number = request["job"]
        try:
            answer = self._computed(request)
        except ExecutorEndedError as error:
            self._send(ended=str(error), exit_code=error.exit_code)
            return
        except FullStoreError as error:
            text = (
                f"the object store of Ray and the disk behind it are full ({error}); make room, "
                "start Ray with a larger --object-store-memory, or set object_store_mb"
            )
            answer = {"failed": _failure(text)}
        except RunFailedError as error:
            damaged = isinstance(error, DamagedFileError)
            answer = {"lost": str(error)} if damaged else {"failed": _failure(str(error))}
        except (LostHostError, LostWorkerError) as error:
            answer = {"lost": str(error)}
        except Exception as error:  # nobody else would tell
            answer = {"lost": f"{type(error).__name__}: {error}"}
        self._send(job=number, **answer)

    def _computed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        nodes = self._cluster.nodes()
        gpus, threads, memory_bytes = request["need"]
        need = need_of(gpus, threads, memory_bytes, nodes)
        planned = request["message"]["fingerprint"]
        worker = self._fleet.take(need, planned, request["run"], nodes)
        self._computing[request["job"]] = worker
        try:
            answer = self._asked(worker, request)
        except BaseException:
            self._fleet.drop(worker)
            raise
        finally:
            del self._computing[request["job"]]
        self._fleet.give(worker)
        return answer

    def _asked(self, worker: FleetWorker, request: Mapping[str, Any]) -> dict[str, Any]:
        """Compute a cell; a worker without the data gets them and begins again."""
        key = ":".join(request["message"]["data"])
        out = Path(request["out"])
        while True:
            reads = [TravellingFile(*file) for file in request["reads"]]
            paths = {file.sha256: inside(out, file.path) for file in reads}
            data = None
            if key in worker.lacks:
                file = self._handed(key, request["job"])
                data = file.sha256
                reads.append(file)
                paths[data] = self._data_paths[data]
            answer = self._once(worker, request, reads, paths, data)
            if answer.pop("wants", None) != "data" or data is not None:
                break
            worker.lacks.add(key)
        if "receipt" in answer:
            files = [TravellingFile(*file) for file in answer.pop("files")]
            if [file.path for file in files] != list(request["leaves"]):
                raise DamagedFileError("the worker has left other files than the cell's")
            for file in files:
                receive(out, file, self._pieces(worker, file))
        return answer

    def _once(
        self,
        worker: FleetWorker,
        request: Mapping[str, Any],
        reads: Sequence[TravellingFile],
        paths: Mapping[str, Path],
        data: str | None,
    ) -> dict[str, Any]:
        call, handle = self._cluster.call, worker.handle
        files = [tuple(file) for file in reads]
        missing: list[str] = call(handle, "missing", files)
        refs = {sha256: self._references.of(sha256, paths[sha256]) for sha256 in missing}
        sizes = sum(file.size for file in reads if file.sha256 in refs)
        asked = {name: request[name] for name in ("message", "cell", "run", "leaves", "keeps")}
        call(handle, "begin", {**asked, "data": data}, files, refs, takes_s=sizes / PIECE)
        refs.clear()
        while True:
            told = call(handle, "poll", POLL_S, takes_s=POLL_S)
            for event in told["events"]:
                self._send(job=request["job"], event=event)
            if told["checkpoint"] is not None:
                self._keep(worker, request, told["checkpoint"])
            if told["answer"] is not None:
                answer: dict[str, Any] = told["answer"]
                return answer

    def _handed(self, key: str, job: int) -> TravellingFile:
        """The data of a run in a file, which the process that plans writes when it is asked.

        Raises:
            RunFailedError: it cannot.
        """
        with self._told:
            if key not in self._data:
                self._send(job=job, wants=key)
            self._told.wait_for(lambda: key in self._data or self.stopping)
            found = self._data.get(key, "the executor was left")
        if isinstance(found, str):
            raise RunFailedError(found)
        return found

    def _keep(
        self, worker: FleetWorker, request: Mapping[str, Any], told: Sequence[Sequence[Any]]
    ) -> None:
        """Fetch a checkpoint into the run's folder."""
        files = [TravellingFile(*file) for file in told]
        out = Path(request["out"])
        folder = inside(out, request["keeps"])
        news = {f.path: self._pieces(worker, f) for f in files if not holds(out, f)}
        replace_checkpoint(out, folder, files, news)

    def _pieces(self, worker: FleetWorker, file: TravellingFile) -> Iterator[bytes]:
        for offset in range(0, file.size, PIECE):
            yield self._cluster.call(worker.handle, "read", file.sha256, offset)

    def stop(self, grace_s: float) -> None:
        """Interrupt what is computed, keep its checkpoints, and end the actors.

        Args:
            grace_s: what the cells may take to end.
        """
        until = time.monotonic() + grace_s
        with self._told:
            self.stopping = True
            self._told.notify_all()
        for worker in list(self._computing.values()):
            threading.Thread(target=self._interrupt, args=(worker,), daemon=True).start()
        while self._computing and time.monotonic() < until:
            time.sleep(0.02)
        handles = self._fleet.close()
        end = self._cluster.end
        closing = [threading.Thread(target=end, args=(one,), daemon=True) for one in handles]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(0.0, until + TIDY_S - time.monotonic()))
        for handle in handles:
            self._cluster.kill(handle)
        self._cluster.close()

    def _interrupt(self, worker: FleetWorker) -> None:
        try:
            self._cluster.call(worker.handle, "interrupt")
        except (LostHostError, FullStoreError):
            return


def variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """What workers have in their environment as the process that plans does; None: not at all."""
    found: dict[str, str | None] = {name: environment.get(name) for name in FOLLOWED}
    ours = {k: v for k, v in environment.items() if k.startswith(OURS) and k not in NOT_OURS}
    return {**found, **ours}


def _failure(text: str) -> dict[str, str]:
    return {"kind": "RunFailedError", "text": text, "trace": ""}


def _watch(cluster: Cluster, link: Link) -> None:
    """Tell that the cluster is gone, before Ray ends this process for it."""
    wait_until_gone(cluster, GONE_TRIES, GONE_S)
    link.send(ended=f"the Ray cluster {cluster.address} is gone: its head answers no more")
    os._exit(1)


def _watch_nodes(cluster: Cluster, link: Link) -> None:
    """Tell which machines there are when that changes."""
    before = cluster.nodes()
    while True:
        time.sleep(NODES_S)
        try:
            now = cluster.nodes()
        except Exception:  # it is closed, or gone, which the other watcher tells
            return
        if cluster.node not in {node.id for node in now}:
            link.send(ended=f"Ray on this machine, by which {cluster.address} is reached, is gone")
            os._exit(1)
        if now != before:
            before = now
            link.send(nodes=now)


def main() -> int:
    """Serve the process that has started this one until it ends or says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link()
    first = link.next()
    if first is None:
        return 0
    try:
        cluster = Cluster(first["address"], first["store_bytes"])
    except ConnectError as error:
        link.send(refused=str(error))
        return 2
    link.send(ready=cluster.nodes(), pid=os.getpid())
    driver = Driver(cluster, link.send, first["most"], first["session"])
    for watch in (_watch, _watch_nodes):
        threading.Thread(target=watch, args=(cluster, link), daemon=True).start()
    while (request := link.next()) is not None:
        if "stop" in request:
            driver.stop(request["stop"])
            link.send(left=True)
            os._exit(0)  # threads that wait for lost actors do not hold it up
        driver.take(request)
    driver.stop(0.0)  # the process that plans was killed
    os._exit(1)

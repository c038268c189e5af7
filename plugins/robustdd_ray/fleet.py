"""The actors of a driver: how many there can be, where, which are idle, and which cannot be used.

It knows no more of Ray than `Machines` says, so that it is tested without.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import ExecutorEndedError
from robustdd_bench.runs.execution.fingerprint import refuse_other
from robustdd_bench.runs.execution.link import LostWorkerError

LEAST_BYTES = 2**30
"""Memory that is reserved for a worker of which nothing is known."""
START_FAILURES = 3
"""Actors in a row that are lost before they have said anything, which ends the call."""
HELLO_S = 2.0
WAIT_S = 1.0
FULL_S = 30.0
"""Seconds without a free place in the cluster after which that is told."""


class NodeFacts(NamedTuple):
    """A machine of the cluster."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int
    """Bytes that actors may reserve."""


class Need(NamedTuple):
    """What a worker takes of a machine."""

    gpus: int
    threads: int
    memory: int

    def covers(self, other: Need) -> bool:
        """Whether a worker that has this can do what needs the other."""
        same = (self.gpus, self.threads) == (other.gpus, other.threads)
        return same and self.memory >= other.memory


def need_of(gpus: int, threads: int, memory_bytes: int | None, nodes: Iterable[NodeFacts]) -> Need:
    """What a worker for a cell takes.

    Memory is that of cells like it, rounded up so that few workers have to make room for larger
    ones, and never more than the largest machine has. On a GPU what is known is the GPU's.

    Args:
        gpus: of the cell.
        threads: of the cell.
        memory_bytes: of cells like it; None where that is not known.
        nodes: the machines.
    """
    memory = LEAST_BYTES
    while not gpus and memory_bytes is not None and memory < memory_bytes:
        memory *= 2
    most = max((n.memory for n in nodes if n.cpus >= max(1, threads) and n.gpus >= gpus), default=0)
    return Need(gpus, threads, min(memory, most))


def places(nodes: Iterable[NodeFacts], need: Need) -> int:
    """How many such workers the machines have room for."""
    count = 0
    for node in nodes:
        rooms = [node.cpus // max(1, need.threads)]
        rooms += [node.gpus // need.gpus] if need.gpus else []
        rooms += [node.memory // need.memory] if need.memory else []
        count += min(rooms)
    return count


@dataclass(eq=False, slots=True)
class FleetWorker:
    """An actor that can compute."""

    handle: Any
    need: Need
    node: str
    name: str
    run: str = ""
    """The run that it computed for last, whose data and networks it has."""
    lacks: set[str] = field(default_factory=set)
    """Data that it does not have, by their hashes."""


class Machines(Protocol):
    """What a fleet needs of a cluster; `robustdd_ray.cluster.Cluster` is one."""

    def nodes(self) -> list[NodeFacts]:
        """The machines that are alive."""

    def start(
        self, need: Need, session: str, variables: dict[str, str | None], avoid: Sequence[str]
    ) -> Any:
        """Ask for an actor."""

    def hello(self, handle: Any, timeout_s: float) -> dict[str, Any] | None:
        """What an actor says of itself; None where it is not there yet."""

    def end(self, handle: Any) -> None:
        """Let an actor tidy up, and end it."""

    def kill(self, handle: Any) -> None:
        """End an actor."""


class Fleet:
    """Actors, each for one cell at a time.

    Args:
        machines: where they are.
        session: of the driver.
        variables: of the environment; see `Host`.
        most: how many there may be; 0: as many as there is room for.
        say: takes a line for the log of a run.
    """

    def __init__(
        self,
        machines: Machines,
        session: str,
        variables: dict[str, str | None],
        most: int,
        say: Callable[[str], None],
    ) -> None:
        self._machines, self._session, self._variables = machines, session, variables
        self._most, self._say = most, say
        self._changed = threading.Condition()
        self._idle: list[FleetWorker] = []
        self._handles: list[Any] = []
        self._refused: dict[str, str] = {}
        self._failures: list[str] = []
        self._said: set[str] = set()
        self._waiting = self._starting = 0
        self._closed = False

    def take(
        self, need: Need, planned: Mapping[str, str], run: str, nodes: Sequence[NodeFacts] = ()
    ) -> FleetWorker:
        """A worker for a cell; waits for one.

        Args:
            need: what it takes.
            planned: the fingerprint that it must have.
            run: the cell's, whose last worker is preferred.
            nodes: the machines, where they are known already.

        Raises:
            ExecutorEndedError: there can be none.
            LostWorkerError: the fleet was closed meanwhile.
        """
        with self._changed:
            self._waiting += 1
        try:
            return self._taken(need, planned, run, nodes)
        finally:
            with self._changed:
                self._waiting -= 1

    def _taken(
        self, need: Need, planned: Mapping[str, str], run: str, nodes: Sequence[NodeFacts]
    ) -> FleetWorker:
        since = time.monotonic()
        while True:
            found = nodes or self._machines.nodes()
            nodes = ()
            with self._changed:
                if self._closed:
                    raise LostWorkerError("the executor was left")
                fitting = [worker for worker in self._idle if worker.need.covers(need)]
                if fitting:
                    worker = next((w for w in reversed(fitting) if w.run == run), fitting[-1])
                    self._idle.remove(worker)
                    worker.run = run
                    return worker
                self._check(found, need)
                room = places([n for n in found if n.id not in self._refused], need)
                most = min(room, self._most) if self._most else room
                full = len(self._handles) >= most
                small = self._idle.pop(0) if self._idle and full else None
                if small is None:
                    if not full and self._starting < self._waiting:
                        self._start(need, planned)
                    self._changed.wait(WAIT_S)
            if small is not None:
                self.drop(small, lost=False)
            elif not self._any_has_come() and time.monotonic() - since > FULL_S:
                self._say_once("waiting for room in the Ray cluster: others compute there")

    def _any_has_come(self) -> bool:
        """Whether any actor of ours has come."""
        return len(self._handles) > self._starting

    def _say_once(self, text: str) -> None:
        with self._changed:
            news = text not in self._said
            self._said.add(text)
        if news:
            self._say(text)

    def _check(self, nodes: Sequence[NodeFacts], need: Need) -> None:
        """Refuse to wait for what cannot come."""
        if len(self._failures) >= START_FAILURES:
            raise ExecutorEndedError(
                f"workers end while they start, {START_FAILURES} in a row: {self._failures[0]}"
            )
        if not nodes:
            raise ExecutorEndedError("the Ray cluster has no machine left")
        if not places(nodes, need):
            what = f"{max(1, need.threads)} CPUs" + (f" and {need.gpus} GPU" if need.gpus else "")
            has = "; ".join(f"{n.name}: {n.cpus} CPUs, {n.gpus} GPUs" for n in nodes) or "none"
            raise ExecutorEndedError(
                f"no machine of the Ray cluster has {what} for a cell ({has}); see --device and "
                "--threads",
                exit_code=2,
            )
        if all(n.id in self._refused for n in nodes if places([n], need)):
            raise ExecutorEndedError("; ".join(dict.fromkeys(self._refused.values())))

    def _start(self, need: Need, planned: Mapping[str, str]) -> None:
        """Ask for an actor; the condition is held."""
        handle = self._machines.start(need, self._session, self._variables, list(self._refused))
        self._handles.append(handle)
        self._starting += 1
        starting = threading.Thread(target=self._greet, args=(handle, need, planned), daemon=True)
        starting.start()

    def _greet(self, handle: Any, need: Need, planned: Mapping[str, str]) -> None:
        """Wait for an actor, and see whether it may compute."""
        about: dict[str, Any] | None = None
        try:
            while about is None and handle in self._handles:
                about = self._machines.hello(handle, HELLO_S)
            problem = "" if about is None else problem_of(about, planned)
        except Exception as error:  # it was lost
            with self._changed:
                self._failures.append(str(error))
            problem = ""
            about = None
        with self._changed:
            self._starting -= 1
        if about is None or problem:
            self._forget(handle, about, problem)
            return
        with self._changed:
            self._failures = []
            self._idle.append(FleetWorker(handle, need, about["node"], about["name"]))
            self._changed.notify_all()

    def _forget(self, handle: Any, about: Mapping[str, Any] | None, problem: str) -> None:
        first = False
        with self._changed:
            if about is not None:
                first = about["node"] not in self._refused
                self._refused[about["node"]] = problem
            if handle in self._handles:
                self._handles.remove(handle)
            self._changed.notify_all()
        if first:
            self._say_once(f"not used: {problem}")
        if about is None:
            self._machines.kill(handle)
        else:
            self._machines.end(handle)

    def give(self, worker: FleetWorker) -> None:
        """A worker's cell has ended."""
        with self._changed:
            self._idle.append(worker)
            self._changed.notify_all()

    def drop(self, worker: FleetWorker, *, lost: bool = True) -> None:
        """A worker is lost, or else too small."""
        with self._changed:
            if worker.handle in self._handles:
                self._handles.remove(worker.handle)
            self._changed.notify_all()
        if lost:
            self._machines.kill(worker.handle)
        else:
            self._machines.end(worker.handle)

    def close(self) -> list[Any]:
        """Let nobody wait any longer.

        Returns:
            The handles of all actors, which are to be ended.
        """
        with self._changed:
            self._closed = True
            handles, self._handles, self._idle = list(self._handles), [], []
            self._changed.notify_all()
        return handles


def problem_of(about: Mapping[str, Any], planned: Mapping[str, str]) -> str:
    """Why a machine cannot be used; "" if it can."""
    where = f"machine {about['name']} ({about['node'][:8]})"
    problem = about.get("problem")
    if problem is not None:
        if "No module named" in problem:
            return (
                f"{where}: robustdd-bench is not installed for its Python ({problem}); "
                "pip install 'robustdd-bench[ray]' there"
            )
        return f"{where}: {problem}"
    try:
        refuse_other(planned, about["fingerprint"])
    except RunFailedError as error:
        return f"{where}: {error}"
    return ""

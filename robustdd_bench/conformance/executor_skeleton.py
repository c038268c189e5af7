"""The files of a new executor: worker processes, a line of JSON for each cell and each answer."""

from __future__ import annotations

EXECUTOR = '''\
"""The executor `$name`: cells in worker processes, one line of JSON for each cell and answer.

A worker is started by a command, so it may run on another machine that sees the same folders.
"""

import contextlib
import json
import queue
import shlex
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.executors import Cell, CellFailedError, Executor, Job, Receipt

WORKER = Path(__file__).with_name("worker.py")


class LostError(Exception):
    """A worker ended in the middle of a cell: the pipeline submits the cell again."""


class $class_name(Executor):
    """A pool of workers that are started when they are needed. Put your engine here."""

    @settings
    class Config:
        """Options of `$class_name`."""

        workers: Annotated[int, Field(ge=1, le=256)] = 2
        """Cells computed at once, each in a worker of its own."""
        command: str = ""
        """What starts Python for a worker, e.g. "ssh node2 python"; "": the Python that runs."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.slots = self.config.workers
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Begin; it is called again after it was left."""
        self._left = False
        self._all: list[subprocess.Popen[str]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(self.slots)
        return self

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Hand a cell to the next worker that is idle, and return at once."""
        return self._threads.submit(self._compute, cell, job)

    def _compute(self, cell: Cell, job: Job) -> Receipt:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = self._start()
        try:
            receipt = _ask(worker, cell, job)
        except CellFailedError:  # the cell's own failure: the worker is well
            self._idle.put(worker)
            raise
        self._idle.put(worker)
        return receipt

    def _start(self) -> subprocess.Popen[str]:
        words = shlex.split(self.config.command) or [sys.executable]
        with self._lock:
            if self._left:
                raise LostError("the executor was left")
            worker = subprocess.Popen(
                [*words, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                process_group=0,  # Ctrl-C is for the process that plans
            )
            self._all.append(worker)
        return worker

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the workers; what still computes after an exception is stopped at once."""
        with self._lock:
            self._left = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            if error is not None:
                worker.kill()
            assert worker.stdin is not None
            with contextlib.suppress(OSError):
                worker.stdin.close()  # a worker whose stdin ends does too
            worker.wait()
        self._threads.shutdown(wait=True)
        for worker in self._all:
            assert worker.stdout is not None
            worker.stdout.close()


def _ask(worker: subprocess.Popen[str], cell: Cell, job: Job) -> Receipt:
    """Have a worker compute a cell; hand on what it says on the way."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        request = {"message": dict(job.message), "cell": cell.name}
        worker.stdin.write(json.dumps(request) + "\\n")
        worker.stdin.flush()
        for line in worker.stdout:
            answer = json.loads(line)
            if "event" in answer:
                job.events(cell, answer["event"])
            elif "failed" in answer:
                raise CellFailedError(**answer["failed"])
            else:
                return Receipt.model_validate_json(json.dumps(answer["receipt"]), strict=True)
    except (OSError, ValueError) as error:  # a pipe or a line that was cut off
        raise LostError(f"a worker ended: {error}") from error
    raise LostError(f"a worker ended: exit code {worker.wait()}")
'''

WORKER = '''\
"""A worker of the executor `$name`: cells from stdin, events and answers to stdout."""

import json
import os
import queue
import threading
import traceback
from typing import Any

from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.runs.execution.failures import failure_of
from robustdd_bench.runs.execution.worker import Worker
from robustdd_bench.runs.shared import SharedData


def main() -> None:
    """Compute cells until stdin ends."""
    lines, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what plugins print goes to stderr
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in lines:
            requests.put(json.loads(line))
        os._exit(0)  # nobody waits any more, in the middle of a cell too

    def send(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\\n")
        out.flush()

    threading.Thread(target=listen, daemon=True).start()
    registry, shared = collect(get_plugin_manager()), SharedData()
    workers: dict[str, Worker] = {}
    while True:
        request = requests.get()
        run = json.dumps(request["message"], sort_keys=True)
        try:
            if run not in workers:
                workers.clear()  # one run at a time; its data are loaded once
                workers[run] = Worker(request["message"], registry, shared)
            receipt = workers[run].run(request["cell"], lambda event: send(event=event))
        except Exception as error:
            failure = failure_of(error, request["cell"])
            trace = "".join(traceback.format_exception(error))
            kind = type(failure).__name__
            send(failed={"kind": kind, "text": str(failure), "trace": trace})
        else:
            send(receipt=receipt.model_dump(mode="json"))


if __name__ == "__main__":
    main()
'''

"""Cells in processes of this machine, several at once: `--jobs N`.

A thread for each process hands it a cell and passes on what it tells. The processes are started
when there is something for them to do, and live until the runs have ended.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from robustdd_bench.errors import UsageError
from robustdd_bench.executors import Cell, CellFailedError, Executor, Job, LocalExecutor, Receipt
from robustdd_bench.records.means import JOBS_VARIABLE
from robustdd_bench.runs.execution.link import GRACE_S, VISIBLE, LostWorkerError, WorkerProcess

BYTES_EACH = 2**30
"""Memory without which `jobs_for` starts no further process."""
MOST_JOBS = 1024


class ProcessExecutor(Executor):
    """Several cells at once, each in a process of this machine."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options."""

        jobs: int = 0
        """Processes; 0: one for each CUDA device where there are some, else for each core."""
        gpus: str = ""
        """CUDA devices that processes take in turn, as in CUDA_VISIBLE_DEVICES; "": all."""

        def __post_init__(self) -> None:
            if not 0 <= self.jobs <= MOST_JOBS:
                raise UsageError(f"jobs must lie in 0..{MOST_JOBS}, not {self.jobs}")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        found = self.Config() if config is None else config
        self._gpus = [gpu for gpu in found.gpus.split(",") if gpu]
        self._jobs = found.jobs or jobs_for(1, self._gpus)
        self.slots = self._jobs + 1  # so that none waits for the pipeline between two cells
        self._lock = threading.Lock()
        self._started = 0
        self._processes: list[WorkerProcess] = []
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Self:
        """Start a process, which takes seconds, while the first run is prepared."""
        self._closed, self._processes, self._idle = False, [], queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="cells")
        if not self._gpus:
            self._idle.put(self._start(None))
        return self

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Hand the cell to the next process that is idle."""
        assert self._pool is not None
        return self._pool.submit(self._compute, cell, job)

    def _compute(self, cell: Cell, job: Job) -> Receipt:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start(self._next_gpu() if cell.resources.gpus else None)
        try:
            receipt = process.compute(cell, job)
        except CellFailedError:
            self._idle.put(process)
            raise
        except LostWorkerError:
            process.end(0.0)
            process.close()
            with self._lock:
                self._processes.remove(process)
            raise
        self._idle.put(process)
        return receipt

    def _start(self, gpu: str | None) -> WorkerProcess:
        with self._lock:
            if self._closed:
                raise LostWorkerError("the executor was left")
            process = WorkerProcess(gpu, path=sys.path)
            self._processes.append(process)
            return process

    def _next_gpu(self) -> str | None:
        with self._lock:
            gpus = self._gpus = self._gpus or visible_gpus()
            self._started += 1
            return gpus[(self._started - 1) % len(gpus)] if gpus else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; those that still compute are interrupted, and killed if need be."""
        assert self._pool is not None
        with self._lock:
            self._closed = True
            processes = list(self._processes)
        self._pool.shutdown(wait=False, cancel_futures=True)
        working = [process for process in processes if process.busy]
        for process in working:
            process.interrupt()
        until = time.monotonic() + GRACE_S
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: all are killed
            while any(process.busy for process in working) and time.monotonic() < until:
                time.sleep(0.02)
        until = time.monotonic() + (0.0 if working else 1.0)
        for process in processes:
            process.end(until)
        self._pool.shutdown(wait=True)
        for process in processes:
            process.close()


def executor_for(
    jobs: int | str | None,
    *,
    device: str,
    threads: int,
    gpu: int | None = None,
    here: bool = True,
) -> Executor:
    """What computes so many cells at once: this process where it is one, else several.

    Args:
        jobs: how many; "auto": see `jobs_for`; None: what ROBUSTDD_JOBS says, else "auto".
        device: "cpu" or "cuda".
        threads: CPU threads of each cell.
        gpu: the number of the one CUDA device to compute on; None: all in turn.
        here: whether one job is done in this process.

    Raises:
        UsageError: there are no such numbers.
    """
    gpus = visible_gpus() if device == "cuda" else []
    gpus = gpus if gpu is None else gpus[gpu : gpu + 1]
    count = checked_jobs(jobs)
    count = jobs_for(threads, gpus) if count is None else count
    if count == 1 and here:
        return LocalExecutor()
    return ProcessExecutor(ProcessExecutor.Config(jobs=count, gpus=",".join(gpus)))


def checked_jobs(jobs: int | str | None) -> int | None:
    """A number of jobs; None for "auto".

    Raises:
        UsageError: it is none.
    """
    text = str(os.environ.get(JOBS_VARIABLE, "auto") if jobs is None else jobs)
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= MOST_JOBS):
        raise UsageError(f"jobs must be auto or lie in 1..{MOST_JOBS}, not {text!r}")
    return int(text)


def visible_gpus() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [gpu.strip() for gpu in os.environ.get(VISIBLE, "").split(",") if gpu.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(index) for index in range(count)]


def jobs_for(threads: int, gpus: Sequence[str] = ()) -> int:
    """How many cells to compute at once.

    Args:
        threads: CPU threads of each; results depend on them, on the number of processes never.
        gpus: the CUDA devices to compute on; none: on the CPU.
    """
    if gpus:
        return len(gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = max(1, (cores or 1) // max(1, threads))
    memory = _available_bytes()
    return jobs if memory is None else max(1, min(jobs, memory // BYTES_EACH))


def _available_bytes() -> int | None:
    """Memory that processes can have; None where that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None

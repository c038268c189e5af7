"""Cells by workers in jobs of SLURM.

The workers are those of `robustdd worker`, the queue is that of the output folder; what is here
starts them. `OUT/queue/slurm` holds job ids, scripts and logs of the jobs.
"""

from __future__ import annotations

import importlib.util
import select
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from robustdd_bench.errors import UsageError
from robustdd_bench.executors import Cell, Executor, ExecutorEndedError, Job, Receipt
from robustdd_bench.runs.execution.queue.driver import QueueDriver
from robustdd_bench.runs.execution.queue.executor import Lease, Slots
from robustdd_bench.text.terminal import duration_text, is_terminal, say
from robustdd_slurm.commands import JobState, missing_commands
from robustdd_slurm.fleet import JobFleet, listed
from robustdd_slurm.times import minutes_of

INSTALL = "pip install 'robustdd-bench[slurm]'"
ASK_S = 60.0
"""Seconds in which a question may be answered."""
EARLY_S = 30
"""Seconds by which SLURM's signal may come too early."""
OURS = {
    "array": "max_workers",
    "signal": "warning",
    "signal_delay_s": "warning",
    "mem": "memory",
    "cpus_per_task": "cpus_per_worker",
    "gpus_per_node": "gpus_per_worker",
    "output": "",
    "error": "",
    "open_mode": "",
    "additional_parameters": "",
}
"""Options of sbatch that this executor sets, and which of its own does it."""
Passed = str | int | float | bool | list[str]


class SlurmExecutor(Executor):
    """Cells of a shared folder, by workers in jobs of SLURM."""

    elsewhere, asks = True, True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options. Any other is handed on to sbatch, as in partition=gpu or account=me."""

        FURTHER: ClassVar[str] = "sbatch"

        time: int | str = "04:00:00"
        """Limit of a job, as sbatch takes it. A job is requeued before it is reached."""
        max_workers: Annotated[int, Field(ge=1, le=10_000)] = 32
        """Jobs at once. There are never more than cells to be computed."""
        gpus_per_worker: Annotated[int, Field(ge=0, le=64)] | None = None
        """By default one where the runs are for GPUs, else none."""
        cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] | None = None
        """By default the threads of the runs."""
        memory: str | int | None = None
        """Of a job, as in 8G, or MiB; by default what the partition gives."""
        setup: str | list[str] = field(default_factory=list)
        """Shell commands before the worker, such as "module load cuda"."""
        warning: Annotated[int, Field(ge=10, le=3600)] = 90
        """Seconds before the limit at which a worker gives its cell back and is requeued."""
        wait: Annotated[int, Field(ge=0, le=86_400)] = 300
        """Seconds after which a worker that has nothing to do ends."""
        on_interrupt: Literal["ask", "cancel", "keep"] = "ask"
        """What becomes of jobs at Ctrl-C; without a terminal "ask" cancels."""
        slots: Slots = 256
        """Cells that are offered at once."""
        lease: Lease = 60.0
        """Seconds without a sign of life after which a worker is taken for dead."""
        sbatch: Mapping[str, Passed] = field(default_factory=dict)
        """What is handed on."""

        def __post_init__(self) -> None:
            if 60 * minutes_of(self.time) <= self.warning + EARLY_S:
                raise ValueError(
                    f"time must be longer than warning, which is {self.warning} s, and {EARLY_S} s "
                    "that SLURM may be early"
                )
            for key in self.sbatch:
                name = key.replace("-", "_")
                if name in OURS:
                    other = f"; see {OURS[name]}" if OURS[name] else ""
                    raise ValueError(f"{key} is set by the executor{other}")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._options = self.Config() if config is None else config
        self.slots = self._options.slots
        if importlib.util.find_spec("submitit") is None:
            raise UsageError(f"the executor slurm needs submitit: {INSTALL}")
        missing = missing_commands()
        if missing:
            raise UsageError(
                f"the executor slurm needs SLURM's commands on the PATH, and {', '.join(missing)} "
                "is not there; run it on a login node, or see `robustdd worker --help`"
            )
        self._driver: QueueDriver | None = None
        self._fleet: JobFleet | None = None
        self._gpus, self._threads = 0, 1

    def __enter__(self) -> Self:
        """Nothing is submitted before there is a cell to compute."""
        return self

    def begin(self, job: Job) -> None:
        """Find the jobs of an earlier call; go on with what their workers do."""
        self._joined(job).begin(job)

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Post the cell; jobs for it are submitted soon."""
        self._gpus = max(self._gpus, cell.resources.gpus)
        self._threads = max(self._threads, cell.resources.threads)
        return self._joined(job).submit(cell, job)

    def _joined(self, job: Job) -> QueueDriver:
        out = Path(job.message["out"])
        if self._driver is None:
            driver = QueueDriver(out, lease_s=self._options.lease, gone=self._gone)
            folder = driver.queue.root / "slurm"
            fleet = JobFleet(driver, self._options.max_workers, self._submit_jobs, folder)
            try:
                fleet.start()
            except ExecutorEndedError:
                driver.close("stopped")
                raise
            self._driver, self._fleet = driver, fleet
        elif self._driver.queue.out != out.absolute():
            raise UsageError("the executor slurm computes cells of one output folder at a time")
        return self._driver

    def _gone(self, holder: Mapping[str, Any], seen: float) -> str:
        return "" if self._fleet is None else self._fleet.gone(holder, seen)

    def _submit_jobs(self, count: int) -> Sequence[str]:
        from robustdd_slurm.submission import RefusedSubmissionError, WorkerJob, submit

        assert self._driver is not None
        queue, options = self._driver.queue, self._options
        folder = queue.root / "slurm"
        worker = ["worker", "--out", str(queue.out), "--wait", str(options.wait)]
        words = [sys.executable, "-P", "-m", "robustdd_bench", *worker]
        try:
            return submit(folder, WorkerJob(words, options.warning), count, self._parameters())
        except RefusedSubmissionError as error:
            raise ExecutorEndedError(f"sbatch does not take the jobs: {error}", 2) from error

    def _parameters(self) -> dict[str, Any]:
        """What sbatch is told."""
        options = self._options
        gpus = self._gpus if options.gpus_per_worker is None else options.gpus_per_worker
        cpus = options.cpus_per_worker or self._threads
        values: dict[str, Any] = {
            "job_name": "robustdd",
            "nodes": 1,
            "ntasks_per_node": 1,
            "time": minutes_of(options.time),
            "cpus_per_task": cpus,
            # Since 22.05 srun does not ask for what sbatch asked for.
            "srun_args": [f"--cpus-per-task={cpus}"],
        }
        if gpus:
            values["gpus_per_node"] = gpus
        if options.memory is not None:
            values["mem"] = str(options.memory)
        setup = [options.setup] if isinstance(options.setup, str) else list(options.setup)
        if setup:
            values["setup"] = setup
        handed_on = {key.replace("-", "_"): value for key, value in options.sbatch.items()}
        return values | {key: value for key, value in handed_on.items() if value is not False}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let workers end; with an exception: cancel the jobs, or leave them, as is wished."""
        driver, fleet = self._driver, self._fleet
        self._driver = self._fleet = None
        if driver is None or fleet is None:
            return
        fleet.stop()
        if error is None:
            driver.close("done")
            if not driver.others():
                fleet.cancel([job for job in fleet.look() if job.waits])
            return
        jobs = fleet.look()
        if jobs and self._keeps(error, jobs):
            driver.close("left")
            say(f"SLURM: {len(jobs)} jobs go on with the cells that are posted: {listed(jobs)}")
            say("the same command finds them; to cancel them: scancel " + listed(jobs, " "))
            return
        driver.close("stopped")
        if jobs:
            fleet.cancel(jobs)
            say(f"SLURM: {len(jobs)} jobs cancelled: {listed(jobs, ' ')}")

    def _keeps(self, error: BaseException, jobs: Sequence[JobState]) -> bool:
        """Whether jobs go on without this process."""
        choice = self._options.on_interrupt
        if isinstance(error, ExecutorEndedError) or choice == "cancel":
            return False
        if choice == "keep":
            return True
        terminal = is_terminal(sys.stderr) and is_terminal(sys.stdin)
        if not (isinstance(error, KeyboardInterrupt) and terminal):
            return False
        for job in jobs:
            say(f"  {job}")
        print(f"Cancel these {len(jobs)} jobs? [Y/n] ", end="", file=sys.stderr, flush=True)
        return _answer().strip().lower() in ("n", "no")


def _answer() -> str:
    """A line from the terminal; "" where none comes, and at a second Ctrl-C."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], ASK_S)
        if ready:
            return sys.stdin.readline()
        say(f"no answer for {duration_text(ASK_S)}")
    except (KeyboardInterrupt, OSError, ValueError):
        print(file=sys.stderr)
    return ""

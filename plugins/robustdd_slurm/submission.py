"""Submitting jobs by submitit: all that touches it, which has no types.

submitit writes a pickle for each job into the queue's folder, and a job loads the one it finds
there: who can write to the output folder can run code as you.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

MOST_TIMEOUTS = 10_000
"""How often submitit requeues a job at its limit."""
INTERRUPTED = (130, 143)


class RefusedSubmissionError(Exception):
    """SLURM does not take the jobs; its text is sbatch's, on one line."""


class WorkerJob:
    """What a job does: it runs a worker in a process of its own.

    Args:
        words: the worker's command line.
        warning_s: seconds before the limit, or before a preemption, at which SLURM's signal comes.
    """

    def __init__(self, words: Sequence[str], warning_s: int) -> None:
        self.words, self.warning_s = list(words), warning_s
        self._pid = 0

    def __call__(self) -> int:
        """Run the worker to its end; its exit code."""
        # Signals reach both processes. The one before the limit is for this one alone.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            process = subprocess.Popen(self.words)
        finally:
            signal.signal(signal.SIGUSR2, before)
        self._pid = process.pid
        while (code := process.poll()) is None:
            time.sleep(0.2)
        if code not in (0, *INTERRUPTED):
            raise SystemExit(code)
        return code

    def checkpoint(self) -> Any:
        """The job is about to be ended: the worker gives its cell back; then the job is requeued.

        Returns:
            What the job does when it comes again.
        """
        until = time.monotonic() + max(5.0, 0.7 * self.warning_s)
        try:
            os.kill(self._pid, signal.SIGTERM)
            while time.monotonic() < until and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                time.sleep(0.1)
        except (ProcessLookupError, ChildProcessError):
            pass
        return DelayedSubmission(WorkerJob(self.words, self.warning_s))


def submit(
    folder: Path, job: WorkerJob, count: int, parameters: Mapping[str, Any]
) -> tuple[str, ...]:
    """Submit an array of jobs.

    Args:
        folder: for scripts, pickles and logs.
        job: what each does.
        count: how many.
        parameters: of sbatch; those that submitit does not know are handed on as they are.

    Returns:
        Their ids.

    Raises:
        RefusedSubmissionError: SLURM does not take them.
    """
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
    known = executor._valid_parameters()
    further = {key: value for key, value in parameters.items() if key not in known}
    mine = {key: value for key, value in parameters.items() if key in known}
    executor.update_parameters(
        **mine,
        signal_delay_s=job.warning_s,
        additional_parameters={**further, "requeue": True},
    )
    jobs = [WorkerJob(job.words, job.warning_s) for _ in range(count)]
    try:
        return tuple(str(one.job_id) for one in executor.submit_array(jobs))
    except (FailedJobError, FailedSubmissionError) as error:
        raise RefusedSubmissionError(_sbatch_words(str(error))) from error


def _sbatch_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.startswith("sbatch: ")]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines) or (
        " ".join(text.split())
    )

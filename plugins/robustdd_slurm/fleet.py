"""The jobs of a folder: as many as there are cells for, found again by the next call."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RobustDDError
from robustdd_bench.executors import ExecutorEndedError
from robustdd_bench.files import read_json, write_json
from robustdd_bench.runs.execution.queue.driver import QueueDriver
from robustdd_bench.text.terminal import one_line, say
from robustdd_slurm.commands import JobState, JobStates, SilentSlurmError, cancel, jobs_now

LOOK_S = 1.0
"""Seconds between two looks at what there is to do."""
ASK_S = 5.0
"""Seconds between two calls of squeue."""
PENDING_S = 120.0
"""Seconds after which it is said that jobs still wait for a node, and between two such lines."""
FRUITLESS = 3
"""Jobs in turn that may end without having asked for a cell."""
LOG_LINES = 3

Submit = Callable[[int], Sequence[str]]


@dataclass(slots=True)
class _Known:
    """What is remembered of a job."""

    submitted: float
    worked: bool = False
    counted: bool = False
    """Whether its end was looked at."""
    ran: bool = False


class JobFleet:
    """Jobs with workers.

    Args:
        driver: the cells.
        most: how many jobs there may be.
        submit: submits so many jobs and returns their ids; it raises an ExecutorEndedError
            where SLURM does not take them.
        folder: where job ids are kept, and the logs of jobs.
    """

    def __init__(self, driver: QueueDriver, most: int, submit: Submit, folder: Path) -> None:
        self._driver, self._most, self._submit, self._folder = driver, most, submit, folder
        self._ids = folder / "jobs"
        self._known: dict[str, _Known] = {}
        self._snapshot = JobStates(0.0)
        self._fruitless = 0
        self._failure = ""
        self._waiting_since: float | None = None
        self._silent_since: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="slurm", daemon=True)

    def start(self) -> None:
        """Find the jobs of an earlier call, and begin to watch.

        Raises:
            ExecutorEndedError: SLURM does not answer.
        """
        for path in sorted(self._ids.glob("*.json")):
            with contextlib.suppress(RobustDDError, KeyError, TypeError):
                for one in read_json(path)["jobs"]:
                    self._known[str(one)] = _Known(time.monotonic(), worked=True)
        try:
            self._snapshot = jobs_now(self._known.keys())
        except SilentSlurmError as error:
            raise ExecutorEndedError(f"SLURM does not answer: {one_line(error)}", 2) from error
        alive = {job.id for job in self.alive()}
        for path in self._ids.glob("*.json"):
            if not any(one.partition("_")[0] == path.stem for one in alive):
                path.unlink(missing_ok=True)
        self._known = {one: known for one, known in self._known.items() if one in alive}
        if alive:
            say(f"SLURM: {len(alive)} jobs of an earlier call go on: {listed(self.alive())}")
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def alive(self) -> list[JobState]:
        """The jobs that run or may yet run, as far as is known."""
        found = []
        for one, known in self._known.items():
            job = self._snapshot.jobs.get(one)
            if job is None or (not job.alive and known.submitted > self._snapshot.asked):
                job = JobState(one, "PENDING")
            if job.alive:
                found.append(job)
        return found

    def look(self) -> list[JobState]:
        """As `alive`, after SLURM was asked."""
        with contextlib.suppress(SilentSlurmError):
            self._snapshot = jobs_now(self._known.keys())
        return self.alive()

    def cancel(self, jobs: Sequence[JobState]) -> None:
        """Cancel jobs, and say if that fails."""
        try:
            cancel([job.id for job in jobs])
        except SilentSlurmError as error:
            say(f"warning: {one_line(error)}; cancel yourself: scancel {listed(jobs, ' ')}")

    def gone(self, holder: Mapping[str, Any], seen: float) -> str:
        """Why the holder of a lease is known to be gone; "" if that is not known.

        Args:
            holder: see `robustdd_bench.runs.execution.queue.holder`.
            seen: when it gave a sign of life last.
        """
        snapshot, job = self._snapshot, str(holder.get("job", ""))
        found = snapshot.jobs.get(job)
        if found is None or snapshot.asked <= seen or job not in self._known:
            return ""
        # One that waits was requeued: what ran before has been ended.
        return f"its job is {found.state.lower()}" if found.waits or not found.alive else ""

    # --- the thread ---------------------------------------------------------------------------

    def _watch(self) -> None:
        asked, demanded = 0.0, False
        while not self._stop.wait(LOOK_S):
            try:
                if self._known and time.monotonic() - asked >= ASK_S:
                    asked = time.monotonic()
                    self._ask()
                demand = self._driver.demand()
                if not demand.waiting:
                    demanded = False
                elif not demanded:  # more cells may follow at once: one array for all
                    demanded = True
                else:
                    self._supply(demand.waiting, demand.held)
            except ExecutorEndedError as error:
                self._driver.fail(error)
                return
            except Exception as error:
                self._driver.fail(ExecutorEndedError(f"SLURM: {one_line(error)}"))
                return

    def _supply(self, waiting: int, held: int) -> None:
        """Submit jobs, if cells wait that none of those there are will take at once."""
        alive = len(self.alive())
        count = min(self._most - alive, waiting - max(0, alive - held))
        if count <= 0:
            if self._most <= 0 and alive == 0:
                raise ExecutorEndedError("all jobs were cancelled; the same command submits others")
            return
        now = time.monotonic()
        ids = self._submit(count)
        for one in ids:
            self._known[one] = _Known(now)
        array = ids[0].partition("_")[0]
        write_json(self._ids / f"{array}.json", {"jobs": list(ids), "driver": self._driver.id})
        say(f"SLURM: {count} {'job' if count == 1 else 'jobs'} submitted: {array}")

    def _ask(self) -> None:
        """Ask SLURM how the jobs are."""
        now = time.monotonic()
        try:
            self._snapshot = jobs_now(self._known.keys())
            self._silent_since = None
        except SilentSlurmError as error:
            if self._silent_since is None or now - self._silent_since > PENDING_S:
                self._silent_since = now
                say(f"warning: SLURM does not answer: {one_line(error)}")
            return
        at_work = {str(fields.get("job")): fields for fields in self._driver.workers().values()}
        for one, known in list(self._known.items()):
            job = self._snapshot.jobs.get(one)
            if job is None:
                continue
            fields = at_work.get(one)
            refused = dict((fields or {}).get("refused", {})).get(self._driver.id, "")
            known.ran |= bool(job.node) and not job.waits
            if fields is not None and not refused:
                known.worked, self._fruitless = True, 0
            if not job.alive and known.submitted < self._snapshot.asked and not known.counted:
                known.counted = True
                self._ended(job, known, refused)
        self._tell_waiting(now)

    def _ended(self, job: JobState, known: _Known, refused: str) -> None:
        if job.state == "CANCELLED":  # somebody wants fewer
            self._most -= 1
            say(f"SLURM: job {job.id} was cancelled; it is not replaced")
            return
        if known.worked:
            return
        self._fruitless += 1
        self._failure = refused or self._log(job.id)
        others = [one for one, other in self._known.items() if not other.counted]
        if self._fruitless >= FRUITLESS or not (others or self._anything_worked()):
            raise ExecutorEndedError(
                f"jobs end without asking for cells ({job.id}: {job.state.lower()}): "
                f"{self._failure or f'see the logs in {self._folder}'}",
                2,
            )

    def _anything_worked(self) -> bool:
        return any(known.worked for known in self._known.values())

    def _log(self, job: str) -> str:
        """The end of what a job wrote to stderr."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"{job}_*_log.err"):
                text = path.read_text(encoding="utf-8", errors="replace")
                lines = [line for line in text.splitlines() if line.strip()]
                return one_line(" / ".join(lines[-LOG_LINES:]))
        return ""

    def _tell_waiting(self, now: float) -> None:
        """Say now and then why jobs wait."""
        alive = self.alive()
        waiting = [job for job in alive if job.waits]
        if not waiting:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since >= PENDING_S:
            self._waiting_since = now
            reasons = ", ".join(sorted({job.reason for job in waiting if job.reason}))
            say(f"SLURM: {len(waiting)} of {len(alive)} jobs wait for a node: {reasons}")


def listed(jobs: Sequence[JobState], separator: str = ", ") -> str:
    """Jobs in one line."""
    if separator == " ":
        return " ".join(job.id for job in jobs)
    return separator.join(map(str, jobs))

"""SLURM's commands: which jobs there are, how they are, and how they are cancelled."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

NEEDED = ("sbatch", "srun", "squeue", "scancel", "scontrol")
TIMEOUT_S = 60.0
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
WAITING = frozenset(["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"])


class SilentSlurmError(Exception):
    """A command of SLURM failed, or gave no answer in time."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job, as squeue shows it."""

    id: str
    state: str
    """In squeue's long form; "GONE" where SLURM has forgotten it."""
    node: str = ""
    reason: str = ""
    time: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs or may yet run."""
        return self.state not in ENDED and self.state != "GONE"

    @property
    def waits(self) -> bool:
        """Whether it has no node."""
        return self.state in WAITING

    def __str__(self) -> str:
        where = f" on {self.node}, {self.time}" if self.node and not self.waits else ""
        why = f" ({self.reason})" if self.waits and self.reason not in ("", "None") else ""
        return f"{self.id} {self.state.lower()}{where}{why}"


@dataclass(frozen=True, slots=True)
class JobStates:
    """All jobs that were asked for, at one time."""

    asked: float
    """When squeue was asked, by the monotonic clock."""
    jobs: dict[str, JobState] = field(default_factory=dict)


def missing_commands() -> list[str]:
    """Which commands of SLURM are not on the PATH."""
    return [name for name in NEEDED if shutil.which(name) is None]


def jobs_now(ids: Collection[str]) -> JobStates:
    """How jobs are.

    Args:
        ids: "123" or, of an array, "123_4".

    Raises:
        SilentSlurmError: SLURM does not say.
    """
    asked = time.monotonic()
    found: dict[str, JobState] = {}
    if ids:
        of = ",".join(sorted({one.partition("_")[0] for one in ids}))
        words = ["--noheader", "--array", "--states=all", f"--jobs={of}"]
        try:
            text = _output("squeue", *words, "--format=%i|%T|%N|%M|%r")
        except SilentSlurmError as error:
            if "Invalid job id" not in str(error):  # all are forgotten
                raise
            text = ""
        for line in text.splitlines():
            fields = line.split("|", 4)
            if len(fields) == 5:
                name, state, node, spent, reason = (part.strip() for part in fields)
                found[name] = JobState(name, state, node, reason, spent)
    return JobStates(asked, {one: found.get(one, JobState(one, "GONE")) for one in ids})


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are none to it.

    Raises:
        SilentSlurmError: it cannot be done.
    """
    if ids:
        _output("scancel", "--quiet", *ids)


def _output(*words: str) -> str:
    # A terminal's Ctrl-C is not for it, and its words are those that are looked for.
    environment = {**os.environ, "LC_ALL": "C"}
    for name in [name for name in environment if name.startswith(("SQUEUE_", "SCANCEL_"))]:
        del environment[name]
    try:
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SilentSlurmError(f"{words[0]}: {error}") from error
    if done.returncode:
        raise SilentSlurmError(" ".join(f"{words[0]}: {done.stderr or done.stdout}".split()))
    return done.stdout

"""Who holds a lease: host, process, and the job of a scheduler that it is part of."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "JOB_ID")
"""Where schedulers say which job a process is part of."""


def this_process() -> dict[str, Any]:
    """This process, as JSON values that another one can judge."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
        "job": _job(),
    }


def is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether a process is known to have ended: it ran here, and is not there any more.

    Args:
        holder: what `this_process` gave there.
    """
    machine, pid, started = holder.get("machine"), holder.get("pid"), holder.get("started")
    if not machine or machine != _machine() or not isinstance(pid, int) or not started:
        return False
    return bool(_started(pid) != started)


def described(holder: Mapping[str, Any]) -> str:
    """A process in words: host, process, job."""
    job = f", job {holder['job']}" if holder.get("job") else ""
    return f"{holder.get('host', '?')}, process {holder.get('pid', '?')}{job}"


def _job() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), "")


def _machine() -> str:
    """Where process numbers mean the same: one start of one machine or container; "" unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {numbers}".encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """When a process began, in ticks; "" if it is not there, or has ended and is not collected."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]

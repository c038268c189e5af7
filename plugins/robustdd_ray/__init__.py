"""Cells on a Ray cluster, whose machines need share no folder: `--executor ray`.

    this process: executor.py         the scheduler's end; it does not import Ray
    a process beside it: driver.py    Ray's driver: fleet.py, cluster.py; it reads and writes files
    Ray's actors: host.py, node.py    each with a worker process of robustdd-bench, which computes

Ray's driver is a process of its own because it ends its process when the cluster is gone, replaces
handlers of signals, and prints.
"""

from __future__ import annotations

import importlib.util

from robustdd_bench.hookspecs import Register, hookimpl

INSTALL = "pip install 'robustdd-bench[ray]'"


def installed() -> bool:
    """Whether Ray is there; it is not imported."""
    return importlib.util.find_spec("ray") is not None


@hookimpl
def robustdd_register_executors(register: Register) -> None:
    """Register Ray."""
    register("ray", "robustdd_ray.executor:RayExecutor", "cells on a Ray cluster, or a local one")


@hookimpl
def robustdd_remark() -> str | None:
    """Say what is missing."""
    return None if installed() else f"inactive: Ray is not installed; {INSTALL}"

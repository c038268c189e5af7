"""Cells by workers in jobs of SLURM: `--executor slurm`. Needs the extra `[slurm]`: submitit."""

from __future__ import annotations

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_executors(register: Register) -> None:
    """An array of workers on the output folder."""
    register(
        "slurm",
        "robustdd_slurm.executor:SlurmExecutor",
        "by an array of workers in jobs of SLURM, on a shared folder",
    )

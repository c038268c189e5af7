"""What ended a run, as an error with one line for the user."""

from __future__ import annotations

import torch

from robustdd_bench.errors import RobustDDError, RunFailedError
from robustdd_bench.executors import CellFailedError
from robustdd_bench.guard import told


def failure_of(error: BaseException, where: str) -> RobustDDError:
    """The error to tell.

    Args:
        error: what was raised.
        where: the cell, or "record".
    """
    if isinstance(error, CellFailedError):
        return error.error()
    if isinstance(error, RobustDDError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return RunFailedError(
            f"out of memory in {where}: set a smaller batch size, or use a larger device"
        )
    return RunFailedError(f"{where} failed: {told(error)}")

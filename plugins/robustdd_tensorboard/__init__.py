"""Writes the events of runs for TensorBoard, where ROBUSTDD_TENSORBOARD asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustdd_bench.hookspecs import hookimpl
from robustdd_tensorboard.logger import TensorBoardLogger, remark

_LOGGER = TensorBoardLogger()


@hookimpl
def robustdd_report(event: Mapping[str, Any]) -> None:
    """Write an event."""
    _LOGGER.receive(event)


@hookimpl
def robustdd_remark() -> str:
    """Say whether event files are written."""
    return remark()

"""From events of a run to the event files of TensorBoard.

The variable ROBUSTDD_TENSORBOARD says whether and where: unset, empty or 0, nothing is written and
nothing is imported; 1 writes into `tensorboard` in the run's folder; anything else is a folder, in
which a run has the place <track>/<method>/<run id>.

The harness sends each value and each picture once, also to a run that goes on after a kill, so a
run that goes on adds a file beside the one before. What a kill took from the buffers is missing
here; `metrics.jsonl` has it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "ROBUSTDD_TENSORBOARD"
INSTALL = "pip install 'robustdd-bench[tensorboard]'"
FLUSH_S = 10
"""Seconds of values that a kill may take."""
NOTES = 10_000
"""More than one start of a run has."""


def place() -> str:
    """What the variable asks for: "" for nothing, "1" for the run's folder, else a folder."""
    value = os.environ.get(VARIABLE, "").strip()
    return "" if value == "0" else value


def installed() -> bool:
    """Whether TensorBoard is there; it is not imported."""
    return importlib.util.find_spec("tensorboard") is not None


def remark() -> str:
    """A line for `robustdd plugins` and `robustdd doctor`."""
    if not installed():
        return f"inactive: tensorboard is not installed; {INSTALL}"
    if not place():
        return f"off; {VARIABLE}=1 writes event files into each run's folder"
    return f"on: {VARIABLE}={place()}"


def log_folder(run: Mapping[str, Any]) -> Path | None:
    """Where the event files of a run go; None where it has no folder of its own.

    Args:
        run: the event "run".
    """
    where = place()
    if where != "1":
        return Path(where).expanduser().joinpath(run["track"], run["method"], run["run_id"])
    return None if run["folder"] is None else Path(run["folder"]) / "tensorboard"


class TensorBoardLogger:
    """Has a writer from the event "run" to the event "end", if one is asked for."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._notes = 0

    def receive(self, event: Mapping[str, Any]) -> None:
        """Write an event; without an open writer it costs nothing."""
        kind = event["event"]
        if kind == "run":
            self._open(event)
            return
        if self._writer is None:
            return
        if kind == "metrics":
            for name, value in event["values"].items():
                number = math.nan if value is None else value
                self._writer.add_scalar(_tag(event, name), number, event["step"])
        elif kind == "images":
            self._writer.add_image(_tag(event, "images"), event["picture"], event["step"])
        elif kind == "note":
            self._notes += 1
            self._writer.add_text(_tag(event, "notes"), _quoted(event["text"]), self._notes)
        elif kind == "stage" and event["status"] != "started":
            self._writer.flush()
        elif kind == "end":
            self._close()

    def _open(self, run: Mapping[str, Any]) -> None:
        self._close()  # a run whose end was never told
        if not place():
            return
        if not installed():
            raise RuntimeError(f"{VARIABLE} is set and tensorboard is not installed; {INSTALL}")
        folder = log_folder(run)
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        before = len(list(folder.iterdir())) if folder.is_dir() else 0
        self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_S)
        # Notes have no step: those of a run that goes on come after those before.
        self._notes = before * NOTES
        if not before:
            lines = [run["command"], *(f"{key} = {value}" for key, value in run["config"].items())]
            self._writer.add_text("run", _quoted("\n".join(lines)), 0)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _tag(event: Mapping[str, Any], name: str) -> str:
    """The stage and the name: TensorBoard groups by what stands before the first slash."""
    return "/".join(part for part in (event["stage"], name) if part)


def _quoted(text: str) -> str:
    """A text that TensorBoard, which reads Markdown, shows as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())

"""`metrics.jsonl`: one JSON line a step, appended by a run and by its resumption.

A line is `{"step": 120, "stage": "distill/matching", "loss": 0.31, ...}`; a value that is NaN or
infinite is null. Tensors are kept on their device and read together, one transfer for each flush.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.errors import RunFailedError

RESERVED = ("step", "stage")


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one step, not yet read from their device."""

    stage: str
    step: int
    values: Mapping[str, float | Tensor]


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one step as finite numbers, or None for what is not."""

    stage: str
    step: int
    values: Mapping[str, float | None]


def hold(values: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    """Copies that later steps cannot change, made without waiting for the device.

    A captured step writes every loss into the same memory, so a reference would not do.

    Raises:
        ValueError: a value is not one number, or has a name that the file uses itself.
    """
    held: dict[str, float | Tensor] = {}
    for name, value in values.items():
        if name in RESERVED:
            raise ValueError(f"a metric cannot be called {name!r}")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"metric {name!r} is not one number: shape {tuple(value.shape)}")
            held[name] = value.detach().clone()
        else:
            held[name] = float(value)
    return held


def read_values(rows: Sequence[Row]) -> list[dict[str, float | None]]:
    """The values of each row as finite numbers or None, with one transfer for each device."""
    by_device: dict[torch.device, list[tuple[int, str, Tensor]]] = {}
    found: list[dict[str, float | None]] = [{} for _ in rows]
    for i, row in enumerate(rows):
        for name, value in row.values.items():
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, []).append((i, name, value))
                found[i][name] = None  # keeps the order in which the values were given
            else:
                found[i][name] = value if math.isfinite(value) else None
    for device, waiting in by_device.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        numbers = torch.stack([value.reshape(()).to(wide) for _, _, value in waiting]).tolist()
        for (i, name, _), number in zip(waiting, numbers, strict=True):
            found[i][name] = number if math.isfinite(number) else None
    return found


class MetricsFile:
    """Appends to a `metrics.jsonl`; what it holds already is not written again.

    A run that was killed and goes on from its checkpoint repeats the steps after it. They have the
    same values, and are left out. A line that was cut off by the kill is removed.

    Args:
        path: the file; it need not exist.

    Raises:
        RunFailedError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Stage -> step that is on file from before -> the names written for it.
        self._known: dict[str, dict[int, set[str]]] = {}
        try:
            if path.exists():
                self._repair()
        except OSError as error:
            raise RunFailedError(f"cannot open {path}: {error.strerror or error}") from error

    def _repair(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        while lines and not self._take(lines[-1], only_check=True):
            lines.pop()
        for line in lines:
            self._take(line)
        length = sum(map(len, lines))
        if length < len(content):
            with self.path.open("r+b") as file:
                file.truncate(length)

    def _take(self, line: bytes, *, only_check: bool = False) -> bool:
        """Remember a line's stage and step; tell whether it is sound."""
        try:
            fields = json.loads(line)
            stage, step = str(fields["stage"]), int(fields["step"])
        except (ValueError, KeyError, TypeError):
            return False
        if not only_check:
            names = self._known.setdefault(stage, {}).setdefault(step, set())
            names |= fields.keys() - set(RESERVED)
        return True

    def holds(self, row: Row | Values) -> bool:
        """Whether the row was on file when this object was made."""
        names = self._known.get(row.stage, {}).get(row.step)
        return names is not None and row.values.keys() <= names

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines in one go.

        Raises:
            RunFailedError: the disk is full or the file cannot be written.
        """
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RunFailedError(f"cannot write {self.path}: {error.strerror or error}") from error

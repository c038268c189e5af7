"""Checkpoints of a loop: a killed run goes on where it was and ends in the same result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.files import read_safetensors, write_safetensors

_STEP = "checkpoint.step"


class Checkpoint:
    """The state of a loop as one safetensors file, replaced atomically every few seconds.

    Args:
        path: the file, in the run's work folder.
        seconds: least time between two saves; 0 saves at every call.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        self._last = time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The last saved step and its tensors (on the CPU), or None.

        Raises:
            UsageError: the file is damaged (it is never half-written by `save`).
        """
        if not self.path.exists():
            return None
        tensors, _ = read_safetensors(self.path)
        if _STEP not in tensors:
            raise UsageError(f"{self.path} is not a checkpoint; delete it or use --fresh")
        return int(tensors.pop(_STEP)), tensors

    def maybe_save(self, step: int, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Save `state()` if the last save is `seconds` ago; the device is read only then."""
        if time.monotonic() - self._last >= self.seconds:
            self.save(step, state())

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Save now."""
        write_safetensors(self.path, {**state, _STEP: torch.tensor(step)})
        self._last = time.monotonic()


def optimiser_state(optimiser: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
    """The state of an optimiser of one tensor, as tensors for a checkpoint."""
    (parameter,) = optimiser.param_groups[0]["params"]
    return {
        f"{name}.{key}": value.detach()
        for key, value in optimiser.state[parameter].items()
        if isinstance(value, Tensor)
    }


def load_optimiser_state(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], name: str
) -> None:
    """The inverse of `optimiser_state`."""
    (parameter,) = optimiser.param_groups[0]["params"]
    for key, value in tensors.items():
        owner, _, field = key.partition(".")
        if owner == name:
            # Adam keeps its step count on the CPU, its moments beside the parameter.
            device = "cpu" if field == "step" else parameter.device
            optimiser.state[parameter][field] = value.to(device)

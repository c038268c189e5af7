"""Resumable state of a method: a few tensors and the step they belong to.

A run that is killed must end in the set it would have made. Methods draw the randomness of a step
from a generator of that step (`task.seeds.generator(purpose, step)`), so no generator is saved.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.errors import RunFailedError
from robustdd_bench.files import read_safetensors, write_safetensors

_FORMAT = "robustdd-checkpoint-1"


def require_finite(step: int, **tensors: Tensor) -> None:
    """Stop a run that has diverged. The host waits for the device: call it now and then.

    Raises:
        RunFailedError: a tensor holds NaN or infinity; the message names it and the step.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RunFailedError(
                f"{name} held NaN or infinity at iteration {step}: the method diverged; "
                "lower its learning rates"
            )


class Checkpoint:
    """A file that is replaced atomically, at most once every so many seconds.

    Args:
        path: where; one method, one file.
        seconds: how long state may be lost at most; 0 saves at every call.
        key: identifies everything that shapes the state (method, configuration, images per class);
            a file with another key is not resumed from.
    """

    def __init__(self, path: Path, seconds: float, key: str = "") -> None:
        self.path = path
        self._seconds = seconds
        self._key = key
        self._saved_at = time.monotonic()

    def load(self, device: torch.device | str = "cpu") -> tuple[int, dict[str, Tensor]] | None:
        """The number of finished steps and the tensors, on `device`; None without a file.

        Raises:
            UsageError: the file is damaged.
        """
        if not self.path.exists():
            return None
        tensors, metadata = read_safetensors(self.path)
        if metadata.get("format") != _FORMAT or metadata.get("key") != self._key:
            return None
        return int(metadata["step"]), {name: t.to(device) for name, t in tensors.items()}

    def maybe_save(self, step: int, tensors: Mapping[str, Tensor]) -> bool:
        """Save if the last save is long enough ago; otherwise cost nothing, the device included.

        Returns:
            Whether it saved.
        """
        if time.monotonic() - self._saved_at < self._seconds:
            return False
        self.save(step, tensors)
        return True

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Save now.

        Args:
            step: the number of finished steps.
            tensors: the state after them.

        Raises:
            RunFailedError: the disk is full, or a tensor holds NaN or infinity (the file before it
                is kept).
        """
        floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
        require_finite(step, **floating)
        metadata = {"format": _FORMAT, "key": self._key, "step": str(step)}
        write_safetensors(self.path, tensors, metadata)
        self._saved_at = time.monotonic()

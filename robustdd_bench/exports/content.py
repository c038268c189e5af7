"""What an export writes, and how images and tensors become files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.files import write_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What is written."""

    images: Tensor
    """(n,C,H,W) float32, in the chosen space."""
    distilled: DistilledSet
    classes: Sequence[str]
    """The name of each class, its number where no name is known."""

    @property
    def labels(self) -> Tensor:
        """(n,) int64, or soft ones (n,K) float32."""
        return self.distilled.labels

    @property
    def rate(self) -> dict[str, float]:
        """The learning rate by its name; empty if the set brings none."""
        rate = self.distilled.learning_rate
        return {} if rate is None else {"learning_rate": rate}


def png_bytes(image_CHW: Tensor) -> bytes:
    """An image of one or three channels as a PNG of 8 bits, clipped to [0,1]."""
    from PIL import Image

    levels = image_CHW.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(buffer, "PNG")
    return buffer.getvalue()


def save_tensors(path: Path, value: object) -> None:
    """As `torch.save`, in a file that is there whole or not at all."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())

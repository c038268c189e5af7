"""Snapshots: pictures of the synthetic images while a set is made, `snapshots/<step>.png`.

They are for people. No record speaks of them, and a run without them is whole.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import distilled_grid, png
from robustdd_bench.files import atomic_write

FOLDER = "snapshots"
MAX_ROWS, MAX_COLUMNS = 20, 10
MAX_PIXEL_BYTES = 900_000
"""Of the images in a picture at three bytes a pixel: noise does not compress."""
_NAME = re.compile(r"([0-9]{8,12})\.png")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A picture of the set after so many steps."""

    step: int
    path: Path


def snapshot_picture(distilled: DistilledSet) -> Tensor:
    """The first images of the first classes, one row a class.

    Args:
        distilled: the set as it is; values that are not finite are shown grey.

    Returns:
        uint8 (3,H,W), less than a MiB as PNG.
    """
    here = dataclasses.replace(
        distilled,
        images=distilled.images.detach().cpu().nan_to_num(nan=0.5),
        labels=distilled.labels.detach().cpu(),
    )
    classes = here.labels.shape[1] if here.soft_labels else int(here.labels.max()) + 1
    height, width = here.images.shape[-2:]
    most = max(1, MAX_PIXEL_BYTES // (3 * height * width))
    rows = min(classes, MAX_ROWS, most)
    return distilled_grid(here, rows, max(1, min(MAX_COLUMNS, most // rows)))


def encoded(picture: Tensor) -> dict[str, Any]:
    """A picture as JSON values, for another process."""
    pixels = picture.contiguous().numpy().tobytes()
    return {"shape": list(picture.shape), "pixels": base64.b64encode(pixels).decode("ascii")}


def decoded(fields: Mapping[str, Any]) -> Tensor:
    """The inverse of `encoded`."""
    pixels = bytearray(base64.b64decode(fields["pixels"]))
    return torch.frombuffer(pixels, dtype=torch.uint8).reshape(fields["shape"])


def write_snapshot(folder: Path, step: int, picture: Tensor) -> bool:
    """Write a picture into a run's folder, whole or not at all.

    Args:
        folder: the run's folder.
        step: finished steps of the distillation.
        picture: what `snapshot_picture` returned.

    Returns:
        Whether it was not there already: a run that goes on repeats the steps after its checkpoint.

    Raises:
        RunFailedError: the disk is full or the folder cannot be written.
    """
    path = folder / FOLDER / f"{step:08d}.png"
    content = png(picture)
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return False
    with atomic_write(path) as file:
        file.write(content)
    return True


def snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a run's folder, by step; links and other files are left out."""
    found = []
    with contextlib.suppress(OSError):
        for path in (folder / FOLDER).iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_file() and not path.is_symlink():
                found.append(Snapshot(int(match[1]), path))
    return sorted(found, key=lambda snapshot: snapshot.step)

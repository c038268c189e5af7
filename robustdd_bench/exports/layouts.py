"""The layouts that other codes read, each written by a function; all can be imported again.

What `robustdd_bench.imports` reads is written the same way: a set that is exported and imported is
the set it was, to the rounding of float32 (of `imagefolder`, to that of 8 bits and of [0,1]).

Shapes: n images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.files import write_bytes
from robustdd_bench.imports.formats import STATISTICS
from robustdd_bench.protocol.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A layout."""

    name: str
    summary: str
    write: Callable[[Path, Tensor, Tensor, DistilledSet], list[str]]
    """Writes images in the chosen space and labels into a folder; gives the names of the files."""
    space: str
    """That of its images unless another one is named: "raw" or "normalised"."""
    soft: bool = True
    """Whether it holds soft labels."""
    reads: str = ""
    """How its files are loaded, in Python."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where the images of an export lie."""

    kind: str
    """"raw" or "normalised"."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    statistics: str | None = None
    """The name of mean and std."""

    def apply(self, images_nCHW: Tensor) -> Tensor:
        """Pixels as images of this space, float32."""
        if self.kind == "raw":
            return images_nCHW
        layer = Preprocessing("normalise", self.mean, self.std).layer(images_nCHW).double()
        with torch.no_grad():
            found: Tensor = layer(images_nCHW.double())
        return found.float()

    def __str__(self) -> str:
        """In words, for the card."""
        if self.kind == "raw":
            return "raw: pixels, of photographs in [0,1]; distilled ones may leave it"
        mean, std = (
            ", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)
        )
        named = f" ({self.statistics})" if self.statistics else ""
        return f"normalised: (pixels - mean) / std with mean {mean} and std {std}{named}"


def choose_space(
    layout: Layout, kind: str | None, statistics: str | None, dataset: str | None, channels: int
) -> Space:
    """Settle in which space images are written.

    Args:
        layout: which has a default.
        kind: "raw" or "normalised"; None: the layout's.
        statistics: the name of mean and std; None: those of the DC and MTT codes for the data set.
        dataset: what the set was made from, if it is known.
        channels: of its images.

    Raises:
        UsageError: what to normalise with is not known, does not fit, or is of no use.
    """
    kind = kind or layout.space
    if kind == "raw":
        if statistics is not None:
            raise UsageError("--statistics goes with --space normalised, not with raw")
        return Space("raw")
    name = statistics or f"dc-{dataset}"
    if name not in STATISTICS:
        known = ", ".join(STATISTICS)
        raise UsageError(
            f"layout {layout.name} has normalised images, and nothing says with what those of "
            f"{dataset or 'this set'} are normalised; name --statistics ({known}) or --space raw"
        )
    mean, std = STATISTICS[name]
    if len(mean) != channels:
        raise UsageError(f"--statistics {name} is for {len(mean)} channels, the set has {channels}")
    return Space("normalised", mean, std, name)


def _write_dc(folder: Path, images: Tensor, labels: Tensor, distilled: DistilledSet) -> list[str]:
    _save(folder / "res.pt", {"data": [[images, labels]], "accs_all_exps": {}})
    return ["res.pt"]


def _write_mtt(folder: Path, images: Tensor, labels: Tensor, distilled: DistilledSet) -> list[str]:
    _save(folder / "images_best.pt", images)
    _save(folder / "labels_best.pt", labels)
    names = ["images_best.pt", "labels_best.pt"]
    if distilled.learning_rate is not None:
        _save(folder / "lr_best.pt", torch.tensor(distilled.learning_rate))
        names.append("lr_best.pt")
    return names


def _write_tensors(
    folder: Path, images: Tensor, labels: Tensor, distilled: DistilledSet
) -> list[str]:
    _save(folder / "set.pt", {"images": images, "labels": labels, **_rate(distilled)})
    return ["set.pt"]


def _write_npz(folder: Path, images: Tensor, labels: Tensor, distilled: DistilledSet) -> list[str]:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"images": images.numpy(), "labels": labels.numpy()}
    np.savez(buffer, **arrays | {k: np.float64(v) for k, v in _rate(distilled).items()})
    write_bytes(folder / "set.npz", buffer.getvalue())
    return ["set.npz"]


def _rate(distilled: DistilledSet) -> dict[str, float]:
    return {} if distilled.learning_rate is None else {"learning_rate": distilled.learning_rate}


def _write_folder(
    folder: Path, images: Tensor, labels: Tensor, distilled: DistilledSet
) -> list[str]:
    from PIL import Image

    counts: dict[int, int] = {}
    names = []
    for image, label in zip(images, labels.tolist(), strict=True):
        levels = image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        counts[label] = counts.get(label, 0) + 1
        path = folder / f"{label:05d}" / f"{counts[label] - 1:05d}.png"
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
        names.append(path.relative_to(folder).as_posix())
    return names


def _save(path: Path, value: object) -> None:
    """As `torch.save`, in a file that is there whole or not at all."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="dc",
            summary="res.pt as DC, DSA, DM, IDM and BEARD have it",
            write=_write_dc,
            space="normalised",
            soft=False,
            reads='images, labels = torch.load("res.pt", weights_only=True)["data"][0]',
        ),
        Layout(
            name="mtt",
            summary="images_best.pt, labels_best.pt and lr_best.pt as MTT, FTD and DATM have them",
            write=_write_mtt,
            space="normalised",
            reads='images = torch.load("images_best.pt", weights_only=True)\n'
            'labels = torch.load("labels_best.pt", weights_only=True)',
        ),
        Layout(
            name="tensors",
            summary="set.pt, a dictionary of images and labels",
            write=_write_tensors,
            space="raw",
            reads='found = torch.load("set.pt", weights_only=True)\n'
            'images, labels = found["images"], found["labels"]',
        ),
        Layout(
            name="npz",
            summary="set.npz, arrays of images and labels for numpy",
            write=_write_npz,
            space="raw",
            reads='found = numpy.load("set.npz")\n'
            'images, labels = found["images"], found["labels"]',
        ),
        Layout(
            name="imagefolder",
            summary="a folder of PNG a class, 8 bits, as SRe2L and RDED have it",
            write=_write_folder,
            space="raw",
            soft=False,
            reads='data = torchvision.datasets.ImageFolder("images")',
        ),
    )
}

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

from robustdd_bench.errors import UsageError
from robustdd_bench.exports.content import Content, png_bytes, save_tensors
from robustdd_bench.exports.parquet import PARQUET_FILE, write_parquet
from robustdd_bench.files import write_bytes
from robustdd_bench.imports.formats import STATISTICS
from robustdd_bench.protocol.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A layout."""

    name: str
    summary: str
    write: Callable[[Path, Content], list[str]]
    """Writes a set into a folder; gives the names of the files."""
    space: str
    """That of its images unless another one is named: "raw" or "normalised"."""
    soft: bool = True
    """Whether it holds soft labels."""
    reads: str = ""
    """How its files are loaded, in Python."""
    folder: str = ""
    """Where its files are, below that of the export."""
    pixels_only: bool = False
    """Whether it can hold raw pixels alone."""
    rate: bool = True
    """Whether it holds the learning rate that a set brings."""
    needs: str = ""
    """The package that writes it, where that is an extra."""


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


def _write_dc(folder: Path, content: Content) -> list[str]:
    pair = [content.images, content.labels]
    save_tensors(folder / "res.pt", {"data": [pair], "accs_all_exps": {}})
    return ["res.pt"]


def _write_mtt(folder: Path, content: Content) -> list[str]:
    save_tensors(folder / "images_best.pt", content.images)
    save_tensors(folder / "labels_best.pt", content.labels)
    names = ["images_best.pt", "labels_best.pt"]
    for rate in content.rate.values():
        save_tensors(folder / "lr_best.pt", torch.tensor(rate))
        names.append("lr_best.pt")
    return names


def _write_tensors(folder: Path, content: Content) -> list[str]:
    save_tensors(
        folder / "set.pt", {"images": content.images, "labels": content.labels, **content.rate}
    )
    return ["set.pt"]


def _write_npz(folder: Path, content: Content) -> list[str]:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        "images": content.images.numpy(),
        "labels": content.labels.numpy(),
    }
    np.savez(buffer, **arrays | {k: np.float64(v) for k, v in content.rate.items()})
    write_bytes(folder / "set.npz", buffer.getvalue())
    return ["set.npz"]


def _write_folder(folder: Path, content: Content) -> list[str]:
    counts: dict[int, int] = {}
    names = []
    for image, label in zip(content.images, content.labels.tolist(), strict=True):
        counts[label] = counts.get(label, 0) + 1
        path = folder / f"{label:05d}" / f"{counts[label] - 1:05d}.png"
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, png_bytes(image))
        names.append(path.relative_to(folder).as_posix())
    return names


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="dc",
            summary="res.pt as DC, DSA, DM, IDM and BEARD have it",
            write=_write_dc,
            space="normalised",
            soft=False,
            rate=False,
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
            folder="images",
            pixels_only=True,
            rate=False,
            reads='data = torchvision.datasets.ImageFolder("images")',
        ),
        Layout(
            name="hub",
            summary="a Parquet file of images, labels and float pixels, with a card and Croissant, "
            "as hubs of datasets read it",
            write=write_parquet,
            space="raw",
            pixels_only=True,
            rate=False,
            needs="pyarrow",
            reads=f'rows = pandas.read_parquet("{PARQUET_FILE}")\n'
            'images = numpy.stack([pixels.reshape({shape}) for pixels in rows["pixels"]])\n'
            'labels = rows["{label}"]',
        ),
    )
}

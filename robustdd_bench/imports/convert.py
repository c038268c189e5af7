"""From what a file holds to a distilled set in pixel space.

Students of a set that was made for normalised or whitened pixels are trained behind that same
layer: the set names it (`DistilledSet.preprocessing`), and its pixels are what the layer maps to
the images of the file. Synthetic pixels may leave [0,1] and are not clamped.

Shapes: n images, C channels, H height, W width, K classes, f parts a side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.identity import identity
from robustdd_bench.imports.formats import Choices
from robustdd_bench.imports.readers import READERS
from robustdd_bench.imports.tensors import MAX_BYTES
from robustdd_bench.protocol.mosaics import looks_like_mosaics
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.text.terminal import size_text
from robustdd_bench.toolkit.dsa import Augmentation
from robustdd_bench.toolkit.inputspace import to_pixels

MOST_PIXEL = 10.0
"""Distilled pixels leave [0,1], but not so far: what is larger are levels of 0 to 255."""


def import_set(path: Path, choices: Choices, train_images: Tensor | None = None) -> DistilledSet:
    """Read a set that somebody else made.

    Args:
        path: a file, or a folder where the format is one.
        choices: what `robustdd_bench.imports.formats.choose` settled.
        train_images: (N,C,H,W), the training split that ZCA is fitted on; needed for that space.

    Raises:
        UsageError: the file is missing, damaged, hostile or of another layout, or what it holds is
            not a distilled set.
    """
    if choices.augmentation is not None:
        Augmentation.parse(choices.augmentation)
    found = READERS[choices.format](path, choices)
    images, labels = found.images, found.labels
    if choices.factor > choices.mosaic:
        images, labels = decode(images, labels, choices.factor)
    preprocessing = _preprocessing(choices)
    made = DistilledSet(
        images=_pixels(images, preprocessing, train_images),
        labels=labels,
        learning_rate=choices.learning_rate if choices.rate == "call" else found.learning_rate,
        augmentation=choices.augmentation,
        preprocessing=preprocessing,
        mosaic=choices.mosaic,
        provenance={
            "imported": {
                "format": choices.format,
                "files": dict(found.files),
                "options": choices.described(),
            }
        },
    )
    try:
        made.check(made.images.shape[1:], number_of_classes(made), None)
    except RunFailedError as error:
        raise UsageError(f"{path}: {error}") from error
    return made


def number_of_classes(distilled: DistilledSet) -> int:
    """K, as far as a set tells: the columns of soft labels, or one more than the largest label."""
    labels = distilled.labels
    return labels.shape[1] if distilled.soft_labels else int(labels.max()) + 1


def describe(distilled: DistilledSet) -> dict[str, Any]:
    """What there is to say of a set, as JSON values.

    The range of its pixels is in it: images that are read as of another space than theirs show it.
    """
    labels = distilled.labels.argmax(1) if distilled.soft_labels else distilled.labels
    classes = number_of_classes(distilled)
    images, layer = distilled.images, distilled.preprocessing
    slack = 0.5 / 255  # half a level: the rounding of a whitening that is undone is not outside
    return {
        "images": len(distilled),
        "shape": list(images.shape[1:]),
        "num_classes": classes,
        "images_per_class": torch.bincount(labels, minlength=classes).tolist(),
        "labels": "soft" if distilled.soft_labels else "hard",
        "learning_rate": distilled.learning_rate,
        "augmentation": distilled.augmentation,
        "preprocessing": None if layer is None else identity(layer),
        "pixel_min": float(images.min()),
        "pixel_max": float(images.max()),
        "pixels_outside": float(((images < -slack) | (images > 1 + slack)).double().mean()),
        "looks_like_mosaics": distilled.mosaic == 1 and looks_like_mosaics(images),
        "provenance": dict(distilled.provenance),
    } | ({} if distilled.mosaic == 1 else {"mosaic": distilled.mosaic})


def _preprocessing(choices: Choices) -> Preprocessing | None:
    """The layer whose output the file holds; None for pixels, where it is the track's."""
    if choices.space == "normalised":
        return Preprocessing("normalise", choices.mean, choices.std)
    return Preprocessing("zca") if choices.space == "zca" else None


def _pixels(
    images: Tensor, preprocessing: Preprocessing | None, train_images: Tensor | None
) -> Tensor:
    """Images of a file as pixels, float32."""
    if preprocessing is None:
        if float(images.max()) > MOST_PIXEL:
            raise UsageError(
                f"--space raw: pixels reach {float(images.max()):g}, where raw pixels lie in "
                "[0,1]; divide levels of 0 to 255 by 255, or name the space that they are in"
            )
        return images
    if preprocessing.kind == "zca":
        if train_images is None:
            raise UsageError("--space zca: pixels are found with the training images; add --track")
        if images.shape[1:] != train_images.shape[1:]:
            raise UsageError(
                f"--space zca: the set's images have shape {tuple(images.shape[1:])}, the track's "
                f"training images {tuple(train_images.shape[1:])}"
            )
        layer = preprocessing.layer(train_images)
    else:
        layer = preprocessing.layer(images)
    return to_pixels(layer.double(), images.double()).float()


def decode(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """IDC's multi-formation: each stored image is cut into parts, each enlarged to full size.

    Sides that `factor` does not divide are first filled up with .5 at the right and below.

    Args:
        images: (n,C,H,W) pixels.
        labels: (n,) int64.
        factor: f.

    Returns:
        Images (n*f*f,C,H,W), class by class, in each first part (0,0) of all its images, then
        (0,1) and so on; and labels (n*f*f,).

    Raises:
        UsageError: the images have fewer pixels a side than parts, or too many would come out.
    """
    height, width = images.shape[2:]
    if factor > min(height, width):
        raise UsageError(f"--factor {factor}: the images are {width}x{height} pixels")
    if images.numel() * factor**2 * 4 > MAX_BYTES:
        raise UsageError(f"--factor {factor}: more than {size_text(MAX_BYTES)} of pixels come out")
    tall, wide = -(-height // factor), -(-width // factor)
    padding = (0, wide * factor - width, 0, tall * factor - height)
    padded = F.pad(images, padding, value=0.5)
    decoded, kinds = [], []
    for k in torch.unique(labels).tolist():
        mine = padded[labels == k]
        for i in range(factor):
            for j in range(factor):
                rows, columns = slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide)
                part = mine[:, :, rows, columns]
                decoded.append(F.interpolate(part, size=(height, width), mode="bilinear"))
                kinds.append(torch.full((len(mine),), k))
    return torch.cat(decoded), torch.cat(kinds)

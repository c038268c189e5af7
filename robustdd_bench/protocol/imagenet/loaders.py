"""Tiny ImageNet at 64x64 and six ImageNet subsets at 128x128, as tensors.

val/ is the test split. A label is a place in the lists of
`robustdd_bench.protocol.imagenet.classes`; images come class by class, each in the order of file
names. Pillow decodes an image as it is stored (EXIF is left alone, as by torchvision's ImageFolder)
and turns it into RGB; that of a subset is then resized by
`robustdd_bench.protocol.pictures.resized`. Nothing here is random. Libraries that decode JPEG may
differ by a level of 255; the hash of the data, which every record holds, tells.

Shapes: N images, C = 3 channels, H = W = 64 or 128.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol import papers, terms
from robustdd_bench.protocol.datasets import (
    MAX_IMAGE,
    Count,
    ImageData,
    Split,
    firsts,
)
from robustdd_bench.protocol.imagenet.layouts import (
    SUBSET_LAYOUTS,
    TINY_LAYOUT,
    FolderLayout,
    find_files,
)
from robustdd_bench.protocol.pictures import Fit, read_photo
from robustdd_bench.protocol.terms import described
from robustdd_bench.strict import read_bounded

TINY_SIDE, SUBSET_SIDE = 64, 128
"""Pixels."""


@described(papers.TINY_IMAGENET, terms.IMAGENET)
def load_tiny_imagenet(
    root: Path,
    download: bool,
    *,
    train_per_class: Count | None = None,
    test_per_class: Count | None = None,
) -> ImageData:
    """Tiny ImageNet: 100,000 and 10,000 colour images of 64x64, 200 classes."""
    return load_layout(
        TINY_LAYOUT, root, download, TINY_SIDE, None, train_per_class, test_per_class
    )


def load_layout(
    layout: FolderLayout,
    root: Path,
    download: bool,
    side: int,
    fit: Fit | None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> ImageData:
    """The images that a layout describes.

    Args:
        layout: what must be there; everything is counted before an image is decoded.
        root: the data root.
        download: not possible.
        side: pixels of a side.
        fit: how images are resized; None: they must have that size.
        train_per_class: only so many training images of each class, the first; None: all.
        test_per_class: the same of the test images.

    Returns:
        uint8 images (N,3,side,side) with labels (N,) int64.

    Raises:
        UsageError: something is missing, too much or unreadable; one line says what to do.
    """
    if download:
        raise UsageError(f"{layout.title} cannot be downloaded from here: {layout.source}")
    files = find_files(layout, root)
    chosen = [
        _chosen(name, classes, count)
        for name, classes, count in (
            ("train", files.train, train_per_class),
            ("test", files.test, test_per_class),
        )
    ]
    train, test = (Split(_decoded(paths, side, fit), labels) for paths, labels in chosen)
    return ImageData(train, test, len(layout.wnids))


def _chosen(
    name: str, classes: Sequence[Sequence[Path]], count: int | None
) -> tuple[list[Path], Tensor]:
    """The files of a split and their labels, or those of the first `count` of each class."""
    paths = [path for files in classes for path in files]
    sizes = torch.tensor([len(files) for files in classes])
    labels = torch.arange(len(classes)).repeat_interleave(sizes)
    if count is None:
        return paths, labels
    index = firsts(name, labels, count)
    return [paths[i] for i in index.tolist()], labels[index]


def _decoded(paths: Sequence[Path], side: int, fit: Fit | None) -> Tensor:
    """Images (N,3,side,side) as bytes."""
    images = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)
    for image, path in zip(images, paths, strict=True):
        content = read_bounded(path, "an image", MAX_IMAGE)
        image.copy_(read_photo(content, path, side, fit))
    return images


def _subset(name: str) -> Callable[..., ImageData]:
    """The loader of a subset."""
    layout = SUBSET_LAYOUTS[name]

    @described(papers.IMAGENET, terms.IMAGENET)
    def load(
        root: Path,
        download: bool,
        *,
        fit: Fit = "stretch",
        train_per_class: Count | None = None,
        test_per_class: Count | None = None,
    ) -> ImageData:
        return load_layout(
            layout, root, download, SUBSET_SIDE, fit, train_per_class, test_per_class
        )

    load.__name__ = load.__qualname__ = f"load_{name}"
    load.__doc__ = (
        f"{layout.title}: ten classes of ImageNet at 128x128, up to 1,300 training images and 50 "
        "test images of each; `fit` is that of `pictures.resized`."
    )
    return load


load_imagenette = _subset("imagenette")
load_imagewoof = _subset("imagewoof")
load_imagemeow = _subset("imagemeow")
load_imagesquawk = _subset("imagesquawk")
load_imagefruit = _subset("imagefruit")
load_imageyellow = _subset("imageyellow")

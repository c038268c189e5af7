"""Datasets as tensors: torchvision's, scikit-learn's digits and folders of images.

Loaders return uint8 pixels, or float32 in [0,1], on the CPU; the run puts them on its device once.
Nothing is downloaded unless that is asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol import papers, terms
from robustdd_bench.protocol.hashing import hash_tensor
from robustdd_bench.protocol.pictures import (
    as_floats,
    class_folders,
    images_in,
    numbered,
    read_picture,
)
from robustdd_bench.protocol.terms import described
from robustdd_bench.seeds import derive_seed
from robustdd_bench.strict import read_bounded

Loader = Callable[..., "ImageData"]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(gt=0, lt=1)]
SplitSeed = Annotated[int, Field(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class Split:
    """Images (N,C,H,W), uint8 or float32 in [0,1], and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The examples at `index`."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        """The same on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def copy(self, device: torch.device) -> Split:
        """The same on a device, in memory of its own."""
        return Split(self.images.to(device, copy=True), self.labels.to(device, copy=True))

    def pixels(self) -> Tensor:
        """Images as float32 in [0,1]."""
        return self.images.float().div(255) if self.images.dtype == torch.uint8 else self.images

    def alone(self) -> Split:
        """The split in memory and tensors of its own.

        A view of a larger tensor, or an attribute that a loader set on one, could carry the test
        split.
        """

        def own(tensor: Tensor) -> Tensor:
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            return tensor.detach() if whole else tensor.clone()

        return Split(own(self.images), own(self.labels))

    def sha256(self) -> str:
        """A hash of shapes, pixels and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            hash_tensor(digest, tensor)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ImageData:
    """A dataset: its training split, its test split and the number of classes."""

    train: Split
    test: Split
    num_classes: int
    classes: tuple[str, ...] = ()
    """Their names, where only the files say them; empty of a dataset that is known by its name."""

    def reduced(self, train_per_class: int | None, test_per_class: int | None) -> ImageData:
        """The first images of each class, in the order of the splits; None: all of them.

        Raises:
            UsageError: a number is not positive, or a class has fewer images.
        """
        parts = []
        for name, split, count in (
            ("train", self.train, train_per_class),
            ("test", self.test, test_per_class),
        ):
            parts.append(split if count is None else split.take(firsts(name, split.labels, count)))
        return ImageData(parts[0], parts[1], self.num_classes, self.classes)

    def check(self, name: str) -> ImageData:
        """Return self.

        Raises:
            UsageError: shapes, pixels or labels are not what every later stage relies on.
        """
        for part, split in (("train", self.train), ("test", self.test)):
            where = f"dataset {name!r}, {part} split"
            images, labels = split.images, split.labels
            if images.ndim != 4 or len(images) == 0 or len(images) != len(labels):
                raise UsageError(
                    f"{where}: {tuple(images.shape)} images with {tuple(labels.shape)} labels"
                )
            if images.dtype not in (torch.uint8, torch.float32) or labels.dtype != torch.int64:
                raise UsageError(
                    f"{where}: images must be uint8 or float32 and labels int64, "
                    f"not {images.dtype} and {labels.dtype}"
                )
            if images.dtype == torch.float32:
                if not bool(torch.isfinite(images).all()):
                    raise UsageError(f"{where}: pixels hold NaN or infinity")
                if float(images.min()) < 0 or float(images.max()) > 1:
                    raise UsageError(f"{where}: pixels must lie in [0,1]")
            counts = torch.bincount(labels.clamp_min(0), minlength=self.num_classes)
            if int(labels.min()) < 0 or len(counts) > self.num_classes:
                raise UsageError(f"{where}: labels must lie in 0..{self.num_classes - 1}")
            if bool((counts == 0).any()):
                missing = int((counts == 0).nonzero()[0])
                raise UsageError(f"{where}: class {missing} has no image")
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise UsageError(f"dataset {name!r}: train and test images differ in shape")
        return self


def firsts(name: str, labels: Tensor, count: int) -> Tensor:
    """Sorted indices of the first `count` examples of each class; `name` is that of the split."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(
            f"the data option {name}_per_class must be a positive whole number, not {count!r}"
        )
    fewest = int(torch.bincount(labels).min())
    if count > fewest:
        raise UsageError(
            f"the data option {name}_per_class is {count}, and a class has {fewest} images"
        )
    classes = labels.unique().tolist()
    return torch.cat([torch.nonzero(labels == k).flatten()[:count] for k in classes]).sort().values


def stratified_holdout(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices kept and held out, the same share of every class.

    The order within a class is a hash of (seed, index), so that the split depends on no library's
    shuffling.

    Args:
        labels: (N,) int64.
        fraction: share of each class that is held out, rounded, at least one.
        seed: seed of the split.

    Returns:
        Two sorted index tensors (int64): kept and held out.

    Raises:
        UsageError: a class has fewer than two images.
    """
    held: list[int] = []
    for k in torch.unique(labels).tolist():
        index = torch.nonzero(labels == k).flatten().tolist()
        if len(index) < 2:
            raise UsageError(f"class {k} has {len(index)} image, too few to split")
        index.sort(key=lambda i: derive_seed("holdout", seed, i))
        count = min(max(1, round(fraction * len(index))), len(index) - 1)
        held += index[:count]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[torch.tensor(held)] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


@described(papers.DIGITS, terms.DIGITS)
def load_digits(
    root: Path, download: bool, *, test_fraction: Share = 0.2, split_seed: SplitSeed = 0
) -> ImageData:
    """scikit-learn's digits: 1797 grey images of 8x8, 10 classes, part of the package."""
    table = _digits_table()
    images = torch.from_numpy((table[:, :-1] / 16).astype(np.float32)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    kept, held = stratified_holdout(labels, test_fraction, split_seed)
    everything = Split(images, labels)
    return ImageData(everything.take(kept), everything.take(held), 10)


def _digits_table() -> npt.NDArray[np.float64]:
    """The digits as scikit-learn has them, (1797,65): pixels from 0 to 16, and the class.

    Its file is read in place: importing scikit-learn takes a second.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits as load  # another version, with the file elsewhere

    bunch = load()
    return np.column_stack([bunch.data, bunch.target])


def _torchvision(
    name: str,
    root: Path,
    download: bool,
    splits: tuple[Any, Any],
    train_per_class: int | None,
    test_per_class: int | None,
) -> ImageData:
    """Both splits of a torchvision dataset as uint8 tensors (N,C,H,W), or their first images."""
    import torchvision

    parts = []
    for options in splits:
        try:
            data = getattr(torchvision.datasets, name)(str(root), download=download, **options)
        except Exception as error:  # readers of damaged files raise anything, asserts included
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UsageError(
                f"{name} is not to be had from {root} ({reason}); put torchvision's files there, "
                "name their folder with --data-root, or add --download"
            ) from error
        raw = data.data
        pixels = raw if isinstance(raw, Tensor) else torch.from_numpy(np.asarray(raw))
        if pixels.ndim == 3:  # grey images without a channel axis
            pixels = pixels.unsqueeze(1)
        elif pixels.shape[-1] == 3:  # channels last
            pixels = pixels.permute(0, 3, 1, 2)
        labels = data.labels if hasattr(data, "labels") else data.targets
        parts.append(Split(pixels.contiguous(), torch.as_tensor(labels, dtype=torch.int64)))
    data = ImageData(parts[0], parts[1], int(parts[0].labels.max()) + 1)
    return data.reduced(train_per_class, test_per_class)


_TRAIN_TEST = ({"train": True}, {"train": False})


@described(papers.CIFAR, terms.CIFAR)
def load_cifar10(
    root: Path,
    download: bool,
    *,
    train_per_class: Count | None = None,
    test_per_class: Count | None = None,
) -> ImageData:
    """CIFAR-10: 50,000 and 10,000 colour images of 32x32, 10 classes."""
    return _torchvision("CIFAR10", root, download, _TRAIN_TEST, train_per_class, test_per_class)


@described(papers.CIFAR, terms.CIFAR)
def load_cifar100(
    root: Path,
    download: bool,
    *,
    train_per_class: Count | None = None,
    test_per_class: Count | None = None,
) -> ImageData:
    """CIFAR-100: 50,000 and 10,000 colour images of 32x32, 100 classes."""
    return _torchvision("CIFAR100", root, download, _TRAIN_TEST, train_per_class, test_per_class)


@described(papers.MNIST, terms.MNIST)
def load_mnist(
    root: Path,
    download: bool,
    *,
    train_per_class: Count | None = None,
    test_per_class: Count | None = None,
) -> ImageData:
    """MNIST: 60,000 and 10,000 grey images of 28x28, 10 classes."""
    return _torchvision("MNIST", root, download, _TRAIN_TEST, train_per_class, test_per_class)


@described(papers.FASHION_MNIST, terms.FASHION_MNIST)
def load_fashion_mnist(
    root: Path,
    download: bool,
    *,
    train_per_class: Count | None = None,
    test_per_class: Count | None = None,
) -> ImageData:
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28, 10 classes."""
    return _torchvision(
        "FashionMNIST", root, download, _TRAIN_TEST, train_per_class, test_per_class
    )


@described(papers.SVHN, terms.SVHN)
def load_svhn(
    root: Path,
    download: bool,
    *,
    train_per_class: Count | None = None,
    test_per_class: Count | None = None,
) -> ImageData:
    """SVHN, cropped digits: 73,257 and 26,032 colour images of 32x32, 10 classes."""
    splits = ({"split": "train"}, {"split": "test"})
    return _torchvision("SVHN", root, download, splits, train_per_class, test_per_class)


IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_IMAGE = 2**28
"""Bytes of an image file."""


def load_folder(root: Path, download: bool, *, size: Side | None = None) -> ImageData:
    """A folder of images: ROOT/train/<class>/*.png and ROOT/test/<class>/*.png.

    Folders whose names number the classes (0 to K-1, new000, class_1) are in that order, others in
    the order of their names. Hidden files and folders are left out. Pixels are those of
    `robustdd_bench.protocol.pictures`, with three channels.

    Args:
        root: the folder that holds train/ and test/.
        download: not possible.
        size: height and width to resize to; without it all images must have one size.

    Raises:
        UsageError: a folder or image is missing, unreadable or does not fit the others.
    """
    if download:
        raise UsageError("a folder of images cannot be downloaded; leave --download out")
    if size is not None and size < 1:
        raise UsageError(f"the data option size must be positive, not {size}")
    names = {part: _classes(root / part) for part in ("train", "test")}
    if set(names["train"]) != set(names["test"]):
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise UsageError(f"{root}: train/ and test/ differ in their classes: {', '.join(odd)}")
    order = numbered(names["train"]) or names["train"]
    parts = [_folder_split(root / part, order, size) for part in ("train", "test")]
    return ImageData(parts[0], parts[1], len(order), tuple(order))


def _classes(path: Path) -> list[str]:
    """The names of the classes of a split."""
    try:
        names = class_folders(path)
    except OSError as error:
        raise UsageError(
            f"{path} needs one folder of images a class: {error.strerror or error}"
        ) from error
    if not names:
        raise UsageError(f"{path} needs one folder of images a class, and has none")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{path}: the folder {name!a} has a name that is no text in UTF-8; rename it"
            ) from error
    return names


def _folder_split(path: Path, order: Sequence[str], size: int | None) -> Split:
    """The images of a split, in the order of its classes."""
    images: list[Tensor] = []
    labels: list[int] = []
    for k, name in enumerate(order):
        try:
            for file in images_in(path / name, IMAGE_SUFFIXES, nested=True):
                content = read_bounded(file, "an image", MAX_IMAGE)
                image = read_picture(content, file, size=size)
                images.append(_colours(file, image, images[0].shape if images else None))
                labels.append(k)
        except OSError as error:
            raise UsageError(f"{path / name} cannot be read: {error.strerror or error}") from error
    if any(image.is_floating_point() for image in images):
        images = as_floats(images)
    return Split(torch.stack(images), torch.tensor(labels))


def _colours(path: Path, image_CHW: Tensor, shape: torch.Size | None) -> Tensor:
    """An image with three channels, of the shape of those before it."""
    image = image_CHW.expand(3, -1, -1).contiguous()
    if shape is not None and image.shape != shape:
        raise UsageError(
            f"{path} is {image.shape[2]}x{image.shape[1]}, the images before it "
            f"{shape[2]}x{shape[1]}; set the track's data option size"
        )
    return image

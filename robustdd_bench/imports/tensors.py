"""Tensors in the files of strangers. No pickle is executed.

`torch.load(weights_only=True)` rebuilds tensors and plain containers and refuses any other global.
DC's files also hold numpy scalars, its accuracies. Nobody needs them here, so their globals are
mapped to functions of this module that make nothing: numpy itself is never called, and it does not
matter whether numpy 1 or 2 wrote them.

Shapes: n images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.text.terminal import one_line, size_text

MAX_BYTES = 2**31
"""Of a file, of what a compressed one unpacks to, and of a tensor as float32."""
MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a file holds, before spaces and labels are mapped."""

    images: Tensor
    """(n,C,H,W) float32, in the space of the file."""
    labels: Tensor
    """(n,) of integers, or (n,K) float32."""
    learning_rate: float | None = None
    files: Mapping[str, str]
    """Name to hash of every file that was read."""


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Raises:
        UsageError: there is none, it cannot be read, or it is larger than `limit` bytes.
    """
    try:
        if not path.is_file():
            what = "is no file" if path.exists() else "does not exist"
            raise UsageError(f"{path} {what}")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(content) > limit:
        raise UsageError(f"{path} is larger than {size_text(limit)}; no distilled set is")
    return content


def read_torch(path: Path) -> tuple[Any, str]:
    """What `torch.save` wrote, on the CPU, and the hash of the file.

    Raises:
        UsageError: the file is missing, damaged, too large, or holds anything but tensors,
            numbers, texts and containers of them.
    """
    content = read_bytes(path)
    try:
        check_archive(content)
        with _nothing_but_numpy_scalars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # damaged and hostile files raise anything
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is not None:
            name = one_line(wanted[1], 80)
            raise UsageError(
                f"{path} wants to call {name}, which is refused: a distilled set needs only "
                "tensors, numbers and containers of them"
            ) from error
        raise UsageError(f"{path} is not a readable torch file: {_reason(error)}") from error
    return value, hashlib.sha256(content).hexdigest()


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without torch's advice to load it in another way."""
    text = str(error)
    for prefix in ("WeightsUnpickler error:", "Weights only load failed."):
        text = text.partition(prefix)[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}{': ' + lines[0] if lines else ''}", 200)


def check_archive(content: bytes) -> None:
    """Refuse a compressed archive that unpacks to more than any set needs."""
    if not content.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise UsageError(f"unpacks to {size_text(size)}, more than any distilled set needs")


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, *description: object) -> None:
        del description

    def __setstate__(self, state: object) -> None:
        del state


def _scalar(*value: object) -> None:
    """Stands in for numpy's reconstruction of a scalar."""
    del value


_SCALARS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


@contextlib.contextmanager
def _nothing_but_numpy_scalars() -> Iterator[None]:
    """Allow the globals of numpy scalars, and none that torch or other packages had allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_SCALARS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def plain_tensor(value: object, what: str) -> Tensor:
    """A tensor of a file, if it is an ordinary one.

    Args:
        value: what was found.
        what: where, for messages.

    Raises:
        UsageError: it is no tensor, or a sparse, quantised, complex or far too large one.
    """
    if not isinstance(value, Tensor):
        raise UsageError(f"{what}: expected a tensor, found {type(value).__name__}")
    tensor = value.detach()
    plain = type(tensor) is Tensor and tensor.layout is torch.strided
    if (
        not plain
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_complex()
    ):
        raise UsageError(f"{what}: expected an ordinary tensor of numbers, found {_text(tensor)}")
    # A view can claim more elements than its file has bytes.
    if tensor.numel() * 4 > MAX_BYTES:
        raise UsageError(f"{what}: {_text(tensor)} is larger than any distilled set")
    return tensor


def image_tensor(value: object, what: str) -> Tensor:
    """Images (n,C,H,W) as contiguous float32.

    Raises:
        UsageError: it is not a tensor of floats of that shape, or holds NaN or infinity.
    """
    images = plain_tensor(value, what)
    if images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        raise UsageError(
            f"{what}: images must be floats of shape (n, channels, height, width), "
            f"found {_text(images)}"
        )
    images = images.float().contiguous()
    if not bool(torch.isfinite(images).all()):
        raise UsageError(f"{what}: the images hold NaN or infinity")
    return images


def _text(tensor: Tensor) -> str:
    """Dtype and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def label_tensor(value: object, what: str, kind: str, count: int) -> Tensor:
    """Labels (n,) int64 if `kind` is "hard", else (n,K) float32; logits become distributions.

    Args:
        value: what was found.
        what: where, for messages.
        kind: "hard", "soft" or "logits".
        count: the number of images.

    Raises:
        UsageError: they are of another kind, of another number, or no labels at all.
    """
    labels = plain_tensor(value, what)
    floats = labels.is_floating_point()
    if kind == "hard":
        if labels.ndim != 1 or floats or labels.dtype is torch.bool:
            raise UsageError(
                f"{what}: hard labels must be integers of shape (n,), found {_text(labels)}"
            )
        labels = labels.long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
            raise UsageError(f"{what}: labels must lie in 0..{MAX_CLASSES - 1}")
    else:
        if labels.ndim != 2 or not floats or labels.shape[1] < 2:
            raise UsageError(
                f"{what}: {kind} labels must be floats of shape (n, classes), found {_text(labels)}"
            )
        if not bool(torch.isfinite(labels).all()):
            raise UsageError(f"{what}: the labels hold NaN or infinity")
    if len(labels) != count:
        raise UsageError(f"{what}: {len(labels)} labels do not go with {count} images")
    if kind == "logits":
        return labels.double().softmax(1).float()
    return labels if kind == "hard" else labels.float().contiguous()

"""Sets published as folders of images, a sub-folder a class, as SRe2L and RDED write them.

Which class a folder is: SRe2L's new000 and RDED's 00000 number the classes themselves. Any other
names have an order only if somebody says which.

Shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.imports.formats import Choices
from robustdd_bench.imports.tensors import MAX_BYTES, MAX_CLASSES, Found, read_bytes
from robustdd_bench.protocol.pictures import (
    as_floats,
    class_folders,
    images_in,
    numbered,
    read_picture,
)
from robustdd_bench.text.terminal import size_text

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_FILE = 2**26


def read_folder(path: Path, choices: Choices) -> Found:
    """Every image of a folder, ordered by class and name.

    Raises:
        UsageError: the folder is not laid out so, the order of its classes is not known, or a file
            is unreadable or of another size than the others.
    """
    names = _class_folders(path)
    order, files = _class_order(names, choices.classes)
    whole, root = hashlib.sha256(), path.resolve()
    images: list[Tensor] = []
    labels: list[int] = []
    for k, name in enumerate(order):
        for file in _images_of(path / name, root):
            content = read_bytes(file, MAX_FILE)
            whole.update(f"{name}/{file.name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
            images.append(_read_image(file, content, images[0].shape if images else None))
            labels.append(k)
            if len(images) * images[0].numel() * 4 > MAX_BYTES:
                raise UsageError(f"{path} holds more than {size_text(MAX_BYTES)} of pixels")
    pixels = torch.stack(as_floats(images))
    return Found(
        images=pixels,
        labels=torch.tensor(labels),
        files={f"{root.name}/": whole.hexdigest(), **files},
    )


def _class_folders(path: Path) -> list[str]:
    try:
        if not path.is_dir():
            what = "is no folder" if path.exists() else "does not exist"
            raise UsageError(f"{path} {what}; format folder is a folder of one folder a class")
        names = class_folders(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UsageError(f"{path} needs one folder of images a class, and has {len(names)} folders")
    return names


def _class_order(names: Sequence[str], wanted: str | None) -> tuple[list[str], dict[str, str]]:
    """The folders in the order of their classes, and the hash of the file that says so."""
    if wanted == "sorted":
        return sorted(names), {}
    if wanted is None:
        return _numbered(names), {}
    path = Path(wanted)
    content = read_bytes(path, MAX_FILE)
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"--classes {path}: not a text: {error}") from error
    order = [line for line in lines if line]
    missing = sorted(set(names) - set(order)) or sorted(set(order) - set(names))
    if missing or len(order) != len(names):
        what = f"{missing[0]!r} is in one of both" if missing else "a name is there twice"
        raise UsageError(
            f"--classes {path} must name each of the {len(names)} folders once, a line each; {what}"
        )
    return order, {path.name: hashlib.sha256(content).hexdigest()}


def _numbered(names: Sequence[str]) -> list[str]:
    """Folders whose names are 0 to K-1, behind a common word such as "new" or "class_"."""
    order = numbered(names)
    if order is None:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UsageError(
            f"the names of the folders ({shown}) do not number the classes from 0 to "
            f"{len(names) - 1}; give their order with --classes FILE (a name a line), or "
            "--classes sorted"
        )
    return order


def _images_of(folder: Path, root: Path) -> list[Path]:
    """The images of a class, by name."""
    try:
        files = images_in(folder, SUFFIXES, nested=False)
        for file in files:
            if not file.resolve().is_relative_to(root):
                raise UsageError(f"{file} is a link that leads out of {root.name}")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise UsageError(f"{folder} cannot be read: {error}") from error
    return files


def _read_image(path: Path, content: bytes, shape_CHW: Sequence[int] | None) -> Tensor:
    """One image (C,H,W), of the shape of the others."""
    sides = None if shape_CHW is None else shape_CHW[1:]
    image = read_picture(content, path, formats=("PNG", "JPEG"), sides=sides)
    if shape_CHW is not None and tuple(image.shape) != tuple(shape_CHW):
        raise UsageError(
            f"{path} is {_size(image.shape)}, the images before it {_size(shape_CHW)}; "
            "nothing is resized"
        )
    return image


def _size(shape_CHW: Sequence[int]) -> str:
    """Width, height and colours of an image, for messages."""
    return f"{shape_CHW[2]}x{shape_CHW[1]} {'RGB' if shape_CHW[0] == 3 else 'grey'}"

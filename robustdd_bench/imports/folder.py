"""Sets published as folders of images, a sub-folder a class, as SRe2L and RDED write them.

Which class a folder is: SRe2L's new000 and RDED's 00000 number the classes themselves. Any other
names have an order only if somebody says which.

Shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.imports.formats import Choices
from robustdd_bench.imports.tensors import MAX_BYTES, MAX_CLASSES, Found, read_bytes
from robustdd_bench.text.terminal import size_text

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_FILE = 2**26
MODES = {"RGB": 3, "L": 1}


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
    pixels = torch.stack(images).float().div(255)
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
        names = sorted(p.name for p in path.iterdir() if p.is_dir() and not _hidden(p))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UsageError(f"{path} needs one folder of images a class, and has {len(names)} folders")
    return names


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _class_order(names: Sequence[str], wanted: str | None) -> tuple[list[str], dict[str, str]]:
    """The folders in the order of their classes, and the hash of the file that says so."""
    if wanted == "sorted":
        return sorted(names), {}
    if wanted is None:
        return _numbered(names), {}
    path = Path(wanted)
    content = read_bytes(path, MAX_FILE)
    try:
        lines = [line.strip() for line in content.decode("utf-8").splitlines()]
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
    found: dict[int, str] = {}
    words = set()
    for name in names:
        match = re.fullmatch(r"([A-Za-z_-]*)([0-9]{1,9})", name)
        if match is not None:
            words.add(match[1])
            found[int(match[2])] = name
    if len(words) != 1 or sorted(found) != list(range(len(names))):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UsageError(
            f"the names of the folders ({shown}) do not number the classes from 0 to "
            f"{len(names) - 1}; give their order with --classes FILE (a name a line), or "
            "--classes sorted"
        )
    return [found[k] for k in range(len(names))]


def _images_of(folder: Path, root: Path) -> list[Path]:
    """The images of a class, by name."""
    try:
        files = sorted(p for p in folder.iterdir() if not _hidden(p))
        for file in files:
            if file.is_dir() or file.suffix.lower() not in SUFFIXES:
                raise UsageError(
                    f"{file} is no {', '.join(SUFFIXES)} file; format folder has none "
                    "but images in the folder of a class"
                )
            if not file.resolve().is_relative_to(root):
                raise UsageError(f"{file} is a link that leads out of {root.name}")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise UsageError(f"{folder} cannot be read: {error}") from error
    if not files:
        raise UsageError(f"{folder} holds no image")
    return files


def _read_image(path: Path, content: bytes, shape_CHW: Sequence[int] | None) -> Tensor:
    """One image as uint8 (C,H,W), of the shape of the others."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that of a decompression bomb, before it is decoded
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                channels = MODES.get(image.mode)
                found = (channels, image.height, image.width)
                if channels is None:
                    raise UsageError(f"{path} has colour mode {image.mode}; RGB and grey are read")
                if shape_CHW is not None and found != tuple(shape_CHW):
                    raise UsageError(
                        f"{path} is {_size(found)}, the images before it {_size(shape_CHW)}; "
                        "nothing is resized"
                    )
                pixels = np.array(image)
    except UsageError:
        raise
    except Exception as error:  # Pillow raises SyntaxError and others for damaged files
        raise UsageError(f"{path} is not a readable image: {error}") from error
    return torch.from_numpy(pixels.reshape(found[1], found[2], -1)).permute(2, 0, 1).contiguous()


def _size(shape_CHW: Sequence[int | None]) -> str:
    """Width, height and colours of an image, for messages."""
    return f"{shape_CHW[2]}x{shape_CHW[1]} {'RGB' if shape_CHW[0] == 3 else 'grey'}"

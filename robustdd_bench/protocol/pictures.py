"""Folders of images, a sub-folder a class: which files they are, the order of classes, pixels.

Datasets and imported sets are read by the same rules. Whatever cannot be turned into pixels of
[0,1] without a guess is refused by name: an image with transparent parts, 32-bit integers, floats
outside [0,1], CMYK.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robustdd_bench.errors import UsageError

Fit = Literal["stretch", "crop"]
LEFTOVERS = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Files that systems leave in folders, in small letters; hidden ones are left out anyway."""


def left_out(path: Path) -> bool:
    """Whether a file or folder is none of a user's: hidden, or left behind by a system."""
    return path.name.startswith(".") or path.name.lower() in LEFTOVERS


def class_folders(path: Path) -> list[str]:
    """The names of the folders in a folder, sorted.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not left_out(p))


def numbered(names: Sequence[str]) -> list[str] | None:
    """Names in the order of their numbers, if they number the classes.

    Args:
        names: such as "0" to "9", "new000" to "new099", "class_1" to "class_9".

    Returns:
        The names by number if all have one word before it and the numbers are 0 to K-1; else None.
    """
    found: dict[int, str] = {}
    words = set()
    for name in names:
        match = re.fullmatch(r"([A-Za-z_-]*)([0-9]{1,9})", name)
        if match is not None:
            words.add(match[1])
            found[int(match[2])] = name
    if len(words) != 1 or sorted(found) != list(range(len(names))):
        return None
    return [found[k] for k in range(len(names))]


def images_in(folder: Path, suffixes: Collection[str], *, nested: bool) -> list[Path]:
    """The images of a class, sorted by folder and name.

    Args:
        folder: the folder of the class.
        suffixes: of image files, in small letters.
        nested: whether folders in it are searched as well.

    Raises:
        UsageError: there is a file that is no image, a folder where none may be, or no image.
        OSError: the folder cannot be read.
    """
    found: list[Path] = []
    _collect(folder, found, suffixes, nested)
    if not found:
        raise UsageError(f"{folder} holds no image")
    return found


def _collect(folder: Path, found: list[Path], suffixes: Collection[str], nested: bool) -> None:
    folders = []
    for path in sorted(folder.iterdir()):
        if left_out(path):
            continue
        if path.is_dir() and nested and not path.is_symlink():
            folders.append(path)
        elif path.is_dir() or path.suffix.lower() not in suffixes:
            raise UsageError(
                f"{path} is no {', '.join(sorted(suffixes))} file; the folder of a class holds "
                "nothing but images"
            )
        else:
            found.append(path)
    for path in folders:
        _collect(path, found, suffixes, nested)


def read_picture(
    content: bytes,
    where: Path,
    formats: tuple[str, ...] | None = None,
    size: int | None = None,
    sides: Sequence[int] | None = None,
) -> Tensor:
    """One image, upright as its EXIF orientation says.

    Args:
        content: of the file.
        where: its name, for errors.
        formats: Pillow's names of the formats that are read; None: all.
        size: height and width to resize to, bilinear; None: as it is.
        sides: height and width that it must have; others are refused before they are decoded.

    Returns:
        (C,H,W) with one channel or three: uint8, or float32 in [0,1] of 16-bit and float images.

    Raises:
        UsageError: it is no readable image, or its pixels have no sure meaning in [0,1].
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that of a decompression bomb, before it is decoded
            with Image.open(io.BytesIO(content), formats=formats) as image:
                if sides is not None and sorted(image.size) != sorted(sides):
                    raise UsageError(
                        f"{where} is {image.width}x{image.height}, the images before it "
                        f"{sides[1]}x{sides[0]}; nothing is resized"
                    )
                upright = ImageOps.exif_transpose(image)
                picture = _plain(upright, image.format, where)
                if size is not None:
                    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
                pixels = np.array(picture)
    except UsageError:
        raise
    except Exception as error:  # Pillow raises SyntaxError and others for damaged files
        raise UsageError(f"{where} is not a readable image: {_reason(error)}") from error
    return _pixels(pixels, where)


def read_photo(content: bytes, where: Path, side: int, fit: Fit | None) -> Tensor:
    """A photograph of a published data set as RGB, decoded as torchvision's ImageFolder does.

    EXIF is left alone, and so is what Pillow remarks on it: some images of ImageNet have damaged
    EXIF and whole pixels.

    Args:
        content: of the file.
        where: its name, for errors.
        side: height and width.
        fit: see `resized`; None: it must have that size.

    Returns:
        uint8 (3,side,side).

    Raises:
        UsageError: it is no readable image, or of another size.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                picture: Any = image.convert("RGB")
    except Exception as error:  # Pillow raises SyntaxError and others for damaged files
        raise UsageError(f"{where} is not a readable image: {_reason(error)}") from error
    if fit is not None:
        picture = resized(picture, side, fit)
    if picture.size != (side, side):
        raise UsageError(f"{where} is {picture.width}x{picture.height}, and must be {side}x{side}")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def resized(picture: Any, side: int, fit: Fit) -> Any:
    """A square version of an image of Pillow's.

    Both filters are Pillow's bilinear one, which averages over all that a new pixel covers.

    Args:
        picture: the image.
        side: height and width.
        fit: "stretch": the whole image, whatever its shape, as the codes of trajectory matching do
            (their Resize gets two numbers). "crop": the shorter side becomes `side`, the longer one
            int(side * longer / shorter), and the middle is cut out from round((longer - side) / 2)
            on, as torchvision's Resize and CenterCrop with one number do.
    """
    from PIL import Image

    if fit == "stretch":
        return picture.resize((side, side), Image.Resampling.BILINEAR)
    width, height = picture.size
    short = min(width, height)
    size = (int(side * width / short), int(side * height / short))
    left, top = (round((length - side) / 2) for length in size)
    scaled = picture.resize(size, Image.Resampling.BILINEAR)
    return scaled.crop((left, top, left + side, top + side))


def _reason(error: BaseException) -> str:
    """Why Pillow did not read a file, without the addresses of its objects."""
    text = re.sub(r" <_io\.\w+ object at 0x[0-9a-f]+>", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def _plain(image: Any, file_format: str | None, where: Path) -> Any:
    """The image in a mode whose values are read as they are: L, RGB, 16 bit or float."""
    mode = image.mode
    if "transparency" in image.info and mode in ("P", "L", "RGB", "1"):
        image = image.convert("RGBA")
        mode = "RGBA"
    if mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        if mode != "RGBA":
            image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise UsageError(
                f"{where} has transparent pixels, which have no colour of their own; draw it on a "
                "background and save it as RGB"
            )
        return image.convert("L" if mode in ("LA", "La") else "RGB")
    if mode == "P":
        return image.convert("RGB")
    if mode == "1":
        return image.convert("L")
    if mode == "I" and file_format == "PNG":  # 16-bit grey, in some versions of Pillow
        return image
    if mode in ("L", "RGB", "F") or mode.startswith("I;16"):
        return image
    what = "32-bit integers, whose white is unknown" if mode == "I" else f"colour mode {mode}"
    raise UsageError(f"{where} has {what}; save it as RGB or grey with 8 or 16 bits")


def _pixels(pixels: np.ndarray[Any, Any], where: Path) -> Tensor:
    """Pixels (H,W) or (H,W,C) of a file as (C,H,W)."""
    if pixels.dtype == np.uint8:
        found = torch.from_numpy(pixels)
    elif pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:  # false for NaN as well
            raise UsageError(
                f"{where} has float pixels from {low:g} to {high:g}; they must lie in [0,1]"
            )
        found = torch.from_numpy(pixels.astype(np.float32))
    else:
        found = torch.from_numpy((pixels.astype(np.float64) / 65535).astype(np.float32))
    if found.ndim == 2:
        found = found.unsqueeze(-1)
    return found.permute(2, 0, 1).contiguous()


def as_floats(images: Sequence[Tensor]) -> list[Tensor]:
    """Images as float32 in [0,1]: uint8 as shares of 255, floats as they are."""
    return [image if image.is_floating_point() else image.float() / 255 for image in images]

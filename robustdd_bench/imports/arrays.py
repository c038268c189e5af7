"""Sets as plain tensors or arrays, as people save them who follow no code's layout.

- a file of `torch.save`: {"images": ..., "labels": ...}, or images and labels in a list or tuple;
- an .npz with arrays of those names, or a .safetensors file with tensors of them;
- two files beside each other, images*.pt and labels*.pt, or .npy; or the folder of the two.

Images may be whole numbers from 0 to 255 (uint8), which are levels and nothing else.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.files import read_safetensors
from robustdd_bench.imports.formats import Choices
from robustdd_bench.imports.tensors import (
    Found,
    check_archive,
    image_tensor,
    label_tensor,
    plain_tensor,
    read_bytes,
    read_torch,
)

IMAGES = ("images", "image", "x", "data", "image_syn", "syn_images")
LABELS = ("labels", "label", "y", "targets", "target", "label_syn", "syn_labels")
RATES = ("learning_rate", "lr", "syn_lr")
SUFFIXES = (".pt", ".pth", ".npz", ".npy", ".safetensors")


def read_tensors(path: Path, choices: Choices) -> Found:
    """Images and labels of a file, of two files beside each other, or of their folder.

    Raises:
        UsageError: there is no such file, it is damaged, or it is not clear what in it is what.
    """
    if path.is_dir():
        path = _images_file(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: format tensors is a file {', '.join(SUFFIXES)}, or a folder")
    value, digest = _read(path)
    files = {path.name: digest}
    if isinstance(value, Tensor):
        beside = _labels_file(path)
        labels, files[beside.name] = _read(beside)
        if not isinstance(labels, Tensor):
            raise UsageError(f"{beside}: expected labels alone, found {type(labels).__name__}")
        images = value
    else:
        images, labels = _pair(value, path)
    rate = _rate(value, path) if choices.rate == "file" else None
    pixels = _images(images, f"{path}, images", choices)
    found = label_tensor(_whole(labels, choices), f"{path}, labels", choices.labels, len(pixels))
    return Found(images=pixels, labels=found, learning_rate=rate, files=files)


def _read(path: Path) -> tuple[Any, str]:
    """What a file holds (a tensor, a mapping or a sequence), and its hash."""
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        return read_torch(path)
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if suffix == ".safetensors":
        return read_safetensors(path)[0], digest
    try:
        check_archive(content)
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(loaded), digest
        return {name: torch.from_numpy(loaded[name]) for name in loaded.files}, digest
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # damaged and hostile files raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{path} is no readable file of numpy arrays: {reason}") from error


def _pair(value: object, path: Path) -> tuple[Tensor, Tensor]:
    """Images and labels in what a file holds."""
    if isinstance(value, Mapping):
        found = []
        for what, names in (("images", IMAGES), ("labels", LABELS)):
            there = [name for name in names if name in value]
            if len(there) != 1:
                known = ", ".join(sorted(str(key)[:30] for key in value)[:10]) or "nothing"
                how = "several names of" if there else "none that is a name of"
                raise UsageError(f"{path} holds {known}: {how} {what}; call them images and labels")
            found.append(plain_tensor(value[there[0]], f"{path}, {there[0]}"))
        return found[0], found[1]
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return (
            plain_tensor(value[0], f"{path}, first of two"),
            plain_tensor(value[1], f"{path}, second of two"),
        )
    what = f"{type(value).__name__}"
    raise UsageError(
        f"{path} holds a {what}; format tensors is a dictionary with images and labels, or the two "
        "in a list or tuple"
    )


def _rate(value: object, path: Path) -> float:
    """The learning rate that a dictionary holds."""
    names = [name for name in RATES if isinstance(value, Mapping) and name in value]
    if len(names) != 1:
        raise UsageError(
            f"{path} holds no learning rate (one of {', '.join(RATES)}); name it with "
            "--learning-rate, a number or `track`"
        )
    assert isinstance(value, Mapping)
    found = value[names[0]]
    number = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 1e9:
        raise UsageError(f"{path}, {names[0]}: a learning rate must be one positive number")
    return float(number)


def _images(images: Tensor, what: str, choices: Choices) -> Tensor:
    if images.dtype is torch.uint8:
        if choices.space != "raw":
            raise UsageError(
                f"{what}: whole numbers from 0 to 255 are raw pixels, not {choices.space} ones"
            )
        images = images.float() / 255
    return image_tensor(images, what)


def _whole(labels: Tensor, choices: Choices) -> Tensor:
    """Hard labels that were saved as floats or in a column, as they are meant."""
    if choices.labels == "hard" and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if choices.labels == "hard" and labels.is_floating_point() and labels.ndim == 1:
        whole = labels.round()
        return whole.long() if bool((whole == labels).all()) else labels
    return labels


def _images_file(folder: Path) -> Path:
    """The one file of images in a folder."""
    found = sorted(
        p
        for p in folder.iterdir()
        if p.name.startswith("images") and p.suffix.lower() in (".pt", ".pth", ".npy")
    )
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UsageError(
            f"{folder} needs one file images*.pt or images*.npy, and has {names}; name the file"
        )
    return found[0]


def _labels_file(path: Path) -> Path:
    """The file of labels beside one of images alone."""
    if "images" not in path.name:
        raise UsageError(
            f"{path} holds one tensor; its labels are looked for beside it where its name has "
            "the word images: images.pt and labels.pt"
        )
    return path.with_name(path.name.replace("images", "labels", 1))

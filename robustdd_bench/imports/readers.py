"""One reader a format: from a path to tensors. The layouts are those that the public codes write.

- dc, beard: {"data": [[images, labels], ...], "accs_all_exps": ...}, a pair for each repetition;
- mtt: images_X.pt and labels_X.pt, bare tensors, X an iteration or "best"; datm: lr_X.pt as well;
- idc: [images, labels], each image a mosaic of factor x factor parts, which
  `robustdd_bench.imports.convert` takes apart;
- folder: see `robustdd_bench.imports.folder`; tensors: see `robustdd_bench.imports.arrays`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.imports.arrays import read_tensors
from robustdd_bench.imports.folder import read_folder
from robustdd_bench.imports.formats import Choices
from robustdd_bench.imports.tensors import (
    Found,
    image_tensor,
    label_tensor,
    plain_tensor,
    read_torch,
)

LISTED = 10


def read_dc(path: Path, choices: Choices) -> Found:
    """One of the sets in a file of DC, DSA or DM."""
    value, digest = read_torch(path)
    sets = value.get("data") if isinstance(value, dict) else None
    if not isinstance(sets, (list, tuple)) or not sets or not all(map(_pair, sets)):
        raise UsageError(
            f"{path} is not of format {choices.format}, which is a dictionary whose 'data' lists "
            f"pairs of images and labels; found {_outline(value)}"
        )
    index = choices.index
    if index is None and len(sets) > 1:
        listed = ", ".join(f"{i}: {_outline(pair[0])}" for i, pair in enumerate(sets[:LISTED]))
        more = "" if len(sets) <= LISTED else ", ..."
        raise UsageError(
            f"{path} holds {len(sets)} sets; name one with --index 0 to {len(sets) - 1} "
            f"({listed}{more})"
        )
    if index is not None and index >= len(sets):
        raise UsageError(f"--index {index}: {path} holds {len(sets)} (the first is 0)")
    where = f"{path}, set {index or 0}"
    return _found(sets[index or 0], where, choices, {path.name: digest})


def read_beard(path: Path, choices: Choices) -> Found:
    """A set of BEARD's pool: that of MTT is in its own layout, all others in DC's."""
    if path.is_dir() or path.name.startswith("images_"):
        if choices.index is not None:
            raise UsageError(f"--index {choices.index}: {path} is one set; leave the option out")
        return read_mtt(path, choices)
    return read_dc(path, choices)


def read_mtt(path: Path, choices: Choices) -> Found:
    """Images, the labels beside them and, where it is asked for, the learning rate."""
    path = path / "images_best.pt" if path.is_dir() else path
    if not path.name.startswith("images_"):
        raise UsageError(
            f"{path}: format {choices.format} is a folder with images_best.pt, or a file "
            "images_*.pt with labels_*.pt beside it"
        )
    rest = path.name.removeprefix("images_")
    beside = path.with_name(f"labels_{rest}")
    images, digest = read_torch(path)
    labels, labels_digest = read_torch(beside)
    pixels = image_tensor(images, str(path))
    files = {path.name: digest, beside.name: labels_digest}
    rate = None
    if choices.rate == "file":
        source = path.with_name(f"lr_{rest}")
        if not source.exists():
            raise UsageError(
                f"{source} does not exist; format {choices.format} has the learning rate there. "
                "Name it with --learning-rate, a number or `track`"
            )
        value, files[source.name] = read_torch(source)
        rate = _rate(value, source)
    found = label_tensor(labels, str(beside), choices.labels, len(pixels))
    return Found(images=pixels, labels=found, learning_rate=rate, files=files)


def read_idc(path: Path, choices: Choices) -> Found:
    """The pair in a file of IDC, as it is stored."""
    value, digest = read_torch(path)
    if not _pair(value):
        raise UsageError(
            f"{path} is not of format idc, which is a list of images and labels; found "
            f"{_outline(value)}"
        )
    return _found(value, str(path), choices, {path.name: digest})


READERS: Mapping[str, Callable[[Path, Choices], Found]] = {
    "dc": read_dc,
    "beard": read_beard,
    "mtt": read_mtt,
    "datm": read_mtt,
    "idc": read_idc,
    "folder": read_folder,
    "tensors": read_tensors,
}


def _pair(value: object) -> bool:
    """Whether a value is two tensors."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(isinstance(item, Tensor) for item in value)


def _found(
    pair: tuple[Tensor, Tensor], where: str, choices: Choices, files: Mapping[str, str]
) -> Found:
    images = image_tensor(pair[0], f"{where}, images")
    labels = label_tensor(pair[1], f"{where}, labels", choices.labels, len(images))
    return Found(images=images, labels=labels, files=files)


def _rate(value: object, path: Path) -> float:
    """A learning rate that was saved as a tensor of one element or as a number."""
    if isinstance(value, Tensor):
        tensor = plain_tensor(value, str(path))
        value = tensor.item() if tensor.numel() == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(
            f"{path}: a learning rate must be one positive number, found {_outline(value)}"
        )
    return float(value)


def _outline(value: object) -> str:
    """What a value of a file is, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        keys = ", ".join(sorted(str(key)[:30] for key in value)[:LISTED])
        return f"a dictionary of {keys or 'nothing'}"
    if isinstance(value, (list, tuple)):
        inside = "; ".join(type(item).__name__ for item in value[:3])
        return f"a {type(value).__name__} of {len(value)} ({inside})"
    return f"a {type(value).__name__}" if not isinstance(value, (int, float)) else repr(value)

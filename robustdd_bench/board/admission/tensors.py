"""A distilled set from a stranger, which is measured before any of it is read.

A header of safetensors may claim tensors of any size, and a sparse file of 100 GB costs its author
nothing. What a set may weigh follows from its record, whose own claims are bounded here.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import TEACHER_PREFIX
from robustdd_bench.files import parse_json
from robustdd_bench.records.parts import DataInfo, SetInfo
from robustdd_bench.records.record import Record
from robustdd_bench.records.set_info import set_info
from robustdd_bench.text.terminal import one_line, size_text

MAX_BYTES = 2**30
"""Of tensors: twice Tiny ImageNet at 50 images per class."""
MAX_HEADER = 2**20
"""Of names, shapes and metadata, provenance included."""


def expected_tensors(data: DataInfo, found: SetInfo) -> dict[str, tuple[str, list[int]]]:
    """Type and shape, as safetensors names them, of the tensors that a record speaks of."""
    soft = found.labels == "soft"
    shapes = {} if found.teacher is None else found.teacher.tensors
    return {
        "images": ("F32", [found.images, *data.shape]),
        "labels": (("F32", [found.images, data.num_classes]) if soft else ("I64", [found.images])),
        **{TEACHER_PREFIX + name: ("F32", list(shape)) for name, shape in shapes.items()},
    }


def read_set(path: Path, record: Record) -> DistilledSet:
    """The set of a complete record, if the file is that set.

    Raises:
        UsageError: it is missing, larger than what the record speaks of, of another shape or
            type, damaged, no distilled set of the track, or not the set the record speaks of.
    """
    data, said = record.data, record.distilled
    assert data is not None
    assert said is not None
    _measure(path, expected_tensors(data, said))
    found = DistilledSet.load(path)
    try:
        ipc = None if record.method.reference else record.track.data.ipc
        found.check(data.shape, data.num_classes, ipc)
    except RunFailedError as error:
        raise UsageError(f"{path.name}: {error}") from error
    before, after = (
        info.model_dump(mode="json") for info in (said, set_info(found, data.num_classes))
    )
    if before["sha256"] != after["sha256"]:
        raise UsageError(f"{path.name} is not the set the record speaks of")
    other = [
        f"{key} {_short(after[key])}, not {_short(before[key])}"
        for key in before
        if before[key] != after[key]
    ]
    if other:
        raise UsageError(f"{path.name} has {'; '.join(other)}, as the record says")
    return found


def _short(value: Any) -> str:
    return one_line(value, 60)


def _measure(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Raise UsageError unless the file is as large as these tensors and its header names them."""
    body = sum(math.prod(shape) * (8 if kind == "I64" else 4) for kind, shape in tensors.values())
    if body > MAX_BYTES:
        raise UsageError(
            f"{path.name}: the record speaks of {size_text(body)} of images, more than "
            f"{size_text(MAX_BYTES)}"
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            if size > 8 + MAX_HEADER + body:
                raise UsageError(
                    f"{path.name} is larger than the set the record speaks of: {size_text(size)}"
                )
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, size):
                raise UsageError(f"{path.name} is not a safetensors file with a header of its size")
            header = parse_json(file.read(length), Path(path.name))
    except FileNotFoundError as error:
        raise UsageError(f"{path.name} is missing") from error
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror or error}") from error
    found = _shapes(header)
    if found != tensors:
        raise UsageError(
            f"{path.name} does not hold the tensors the record speaks of: "
            f"{_named(tensors)}; its header names {_named(found) or 'none'}"
        )
    if 8 + length + body != size:
        raise UsageError(f"{path.name} is damaged: it has {size} bytes, not {8 + length + body}")


def _shapes(header: Any) -> dict[str, tuple[str, list[int]]]:
    entries = header if isinstance(header, dict) else {}
    return {
        name: (str(entry.get("dtype")), entry.get("shape", []))
        for name, entry in entries.items()
        if name != "__metadata__" and isinstance(entry, dict)
    }


def _named(tensors: dict[str, tuple[str, list[int]]]) -> str:
    return _short(", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in tensors.items()))

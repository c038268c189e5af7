"""The data of a track: its dataset's loader is found, called and checked.

A process on another machine that lacks them is handed them in a file: `write_data`, `read_data`.
"""

from __future__ import annotations

import json
from pathlib import Path

from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.guard import blame, plain_text
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.datasets import ImageData, Split
from robustdd_bench.protocol.tracks import Track


def load_data(
    track: Track, registry: Registry, data_root: Path, *, download: bool = False
) -> ImageData:
    """Both splits of a track's dataset, on the CPU.

    Args:
        track: the protocol.
        registry: the installed plugins.
        data_root: where datasets are looked for.
        download: whether a missing dataset may be downloaded.

    Raises:
        UsageError: the dataset is unknown, missing or damaged, or takes no such options.
        PluginError: its loader fails, or returns something else than data.
    """
    spec = track.data
    entry = registry.get("datasets", spec.dataset)
    load = entry.load()
    with blame(entry.plugin, f"dataset {entry.name!r}"):
        try:
            data = load(data_root.absolute(), download, **spec.options)
        except TypeError as error:
            raise UsageError(f"track {track.name!r}, data.options: {plain_text(error)}") from error
    if not isinstance(data, ImageData):
        raise PluginError(
            f"plugin {entry.plugin!r}: dataset {entry.name!r} must return ImageData, "
            f"not {type(data).__name__}"
        )
    return data.check(spec.dataset)


def write_data(path: Path, data: ImageData) -> None:
    """Write a dataset into one file, from which `read_data` reads it back bit for bit.

    Raises:
        RunFailedError: the file cannot be written.
    """
    tensors = {
        "train.images": data.train.images,
        "train.labels": data.train.labels,
        "test.images": data.test.images,
        "test.labels": data.test.labels,
    }
    facts = {"num_classes": str(data.num_classes), "classes": json.dumps(data.classes)}
    write_safetensors(path, tensors, facts)


def read_data(path: Path) -> ImageData:
    """The dataset in a file of `write_data`, on the CPU.

    Raises:
        UsageError: it is no such file.
    """
    tensors, metadata = read_safetensors(path)
    try:
        parts = [Split(tensors[f"{p}.images"], tensors[f"{p}.labels"]) for p in ("train", "test")]
        names = tuple(map(str, json.loads(metadata["classes"])))
        data = ImageData(parts[0], parts[1], int(metadata["num_classes"]), names)
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} holds no dataset: {error}") from error
    return data.check(path.name)

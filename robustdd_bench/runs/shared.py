"""What the runs of one process share: data are loaded and hashed, and ZCA is fitted, once.

Nothing of it is handed to a plugin: each run has copies of its own.
"""

from __future__ import annotations

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.datasets import ImageData, Split
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import DataSpec
from robustdd_bench.records.plan import Plan
from robustdd_bench.runs.execution.fingerprint import fingerprint

Kept = TypeVar("Kept")

MOST = 2
"""Datasets, and fitted layers, that are kept: those used last."""


class SharedData:
    """The data and layers of the runs of one call, or of one worker. It must not outlive them:
    data on the disk may change.
    """

    def __init__(self) -> None:
        self._data: OrderedDict[Hashable, ImageData] = OrderedDict()
        self._layers: OrderedDict[Hashable, nn.Module] = OrderedDict()
        self._hashes: dict[Hashable, tuple[str, str]] = {}
        self._fingerprint: dict[str, str] = {}
        self._lock = threading.RLock()
        """Executors ask for data in threads of their own, to hand them on."""

    def data(self, spec: DataSpec, data_root: Path, load: Callable[[], ImageData]) -> ImageData:
        """The data of a track.

        Args:
            spec: what the track says of them.
            data_root: where datasets are looked for.
            load: loads them.
        """
        with self._lock:
            return _kept(self._data, _place(spec, data_root), load)

    def hashes(self, plan: Plan, data_root: Path, splits: tuple[Split, Split]) -> tuple[str, str]:
        """Hashes of the training and the evaluation split of a plan."""
        spec = plan.track.data
        part = (plan.split, spec.validation_fraction, spec.split_seed)
        key = (_place(spec, data_root), part)
        if key not in self._hashes:
            self._hashes[key] = (splits[0].sha256(), splits[1].sha256())
        return self._hashes[key]

    def fingerprint(self, registry: Registry) -> dict[str, str]:
        """What is installed; see `fingerprint`."""
        self._fingerprint = self._fingerprint or fingerprint(registry)
        return self._fingerprint

    def layer(self, of: Hashable, preprocessing: Preprocessing, images: Tensor) -> nn.Module:
        """A copy of a preprocessing layer.

        Args:
            of: what decides its bits beside the description: data, device, threads.
            preprocessing: its description.
            images: (N,C,H,W), what it is fitted on if it has not been.
        """
        fitted = _kept(self._layers, (of, preprocessing), lambda: preprocessing.layer(images))
        return copy.deepcopy(fitted)


def _place(spec: DataSpec, data_root: Path) -> Hashable:
    return (spec.dataset, json.dumps(spec.options, sort_keys=True, default=str), data_root)


def _kept(kept: OrderedDict[Hashable, Kept], key: Hashable, make: Callable[[], Kept]) -> Kept:
    if key not in kept:
        kept[key] = make()
        while len(kept) > MOST:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]

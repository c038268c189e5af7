"""A tiny synthetic task for distillers, and a reporter that counts and can interrupt.

Three classes of twelve images of 1x8x8: two images a class are asked for, the network is a ConvNet
of depth 1 and width 4. Labels are in no order.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.conformance.findings import Interruption
from robustdd_bench.distillers import DistilledSet, DistillTask
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.datasets import Split
from robustdd_bench.protocol.networks import (
    NetworkFactory,
    RegisteredNetworks,
    convnet,
)
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import Seeds, derive_seed
from robustdd_bench.toolkit.snapshots import snapshot_steps

CLASSES = 3
PER_CLASS = 12
IPC = 2
SHAPE_CHW = (1, 8, 8)


def tiny_task(folder: Path, method: str, *, seed: int = 0, as_bytes: bool = False) -> DistillTask:
    """The task, its tensors new on every call.

    Args:
        folder: gets the folders `work` and `store`.
        method: name of the method, an axis of the seeds.
        seed: base of the seeds; the images do not depend on it.
        as_bytes: images as uint8 instead of the same pixels as float32.
    """
    data = _images()
    images = data.images if as_bytes else data.pixels()
    preprocessing, device = Preprocessing(), torch.device("cpu")
    work, store = folder / "work", folder / "store"

    def networks(kind: Preprocessing) -> NetworkFactory:
        options = {"depth": 1, "width": 4}
        return NetworkFactory(convnet, options, SHAPE_CHW, CLASSES, kind, images, device)

    for path in (work, store):
        path.mkdir(parents=True, exist_ok=True)
    return DistillTask(
        images=images,
        labels=data.labels,
        num_classes=CLASSES,
        ipc=IPC,
        network=networks(preprocessing),
        preprocessing=preprocessing,
        threat=ThreatModel("Linf", 0.1),
        augmentation="none",
        device=device,
        seeds=Seeds(seed, "conformance", method),
        work_dir=work,
        store_dir=store,
        data_sha256=Split(images, data.labels).sha256(),
        allow_flip=False,
        network_with=networks,
        networks=RegisteredNetworks(_registry().entries["networks"], CLASSES, images, device),
    )


@functools.cache
def _registry() -> Registry:
    return collect(get_plugin_manager())


def _images() -> Split:
    """A grating per class with noise on it, as bytes."""
    generator = torch.Generator().manual_seed(derive_seed("conformance", "images"))
    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    ramp = torch.arange(8.0)
    gratings = torch.stack([torch.sin((k + 1) * ramp + k).outer(torch.ones(8)) for k in range(3)])
    noise = torch.rand(len(labels), *SHAPE_CHW, generator=generator)
    pixels = 0.3 + 0.2 * gratings[labels].unsqueeze(1) + 0.4 * noise
    return Split((pixels.clamp(0, 1) * 255).round().to(torch.uint8), labels)


class CountingReporter:
    """Counts the calls of `metrics` and `advance`; raises an Interruption at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls = 0
        self.stopped = False
        self._stop_at = stop_at

    def advance(self, steps: int = 1) -> None:
        """A step of a progress bar."""
        self._count()

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[CountingReporter]:
        """A progress bar that is nowhere to be seen."""
        yield self

    def metrics(self, step: int, **values: float | Tensor) -> None:
        """Values of one step."""
        self._count()

    def note(self, text: str) -> None:
        """A line for nobody."""

    def images(self, step: int, total: int, current: Callable[[], DistilledSet]) -> None:
        """The set after a step; it is made where a run would show it."""
        if step in snapshot_steps(total):
            current()

    def work(self, items: int, unit: str) -> None:
        """Items that nobody counts."""

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._stop_at:
            self.stopped = True
            raise Interruption

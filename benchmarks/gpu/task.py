"""CIFAR-10 with the field's ConvNet-3 as a task, or something of its shape that takes no time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.datasets import Split
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import Seeds

NORMALISE = Preprocessing("normalise", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
DSA = "color_crop_cutout_flip_scale_rotate"


def splits(root: Path, tiny: bool, files: int = 5) -> tuple[Split, Split]:
    """Training and test images (N,3,32,32) uint8 with labels.

    Args:
        root: folder of CIFAR-10.
        tiny: something of its shape instead.
        files: how many of the five files of training images to use.
    """
    if not tiny and files < 5:
        names = [f"data_batch_{i + 1}" for i in range(files)]
        return _read(root, names), _read(root, ["test_batch"])
    if not tiny:
        data = collect(get_plugin_manager()).get("datasets", "cifar10").load()(root, False)
        return data.train, data.test
    source = torch.Generator().manual_seed(0)

    def images(count: int) -> Split:
        x = torch.randint(256, (count, 3, 32, 32), generator=source, dtype=torch.uint8)
        return Split(x, torch.arange(count) % 10)

    return images(20), images(10)


def _read(root: Path, names: list[str]) -> Split:
    """The images of some of CIFAR-10's own files."""
    images, labels = [], []
    for name in names:
        with (root / "cifar-10-batches-py" / name).open("rb") as file:
            content = pickle.load(file, encoding="bytes")
        images.append(torch.from_numpy(content[b"data"]).view(-1, 3, 32, 32))
        labels.append(torch.tensor(content[b"labels"]))
    return Split(torch.cat(images), torch.cat(labels))


def task(train: Split, device: torch.device, tiny: bool, folder: Path) -> DistillTask:
    """The task of cifar10-ipc10, at width 8 if tiny."""
    here = train.to(device)
    options = {"depth": 3, "width": 4 if tiny else 128}
    return DistillTask(
        images=here.images,
        labels=here.labels,
        num_classes=10,
        ipc=2 if tiny else 10,
        network=NetworkFactory(convnet, options, (3, 32, 32), 10, NORMALISE, here.images, device),
        preprocessing=NORMALISE,
        threat=ThreatModel("Linf", 2 / 255),
        augmentation=DSA,
        device=device,
        seeds=Seeds(0, "benchmark", "gpu"),
        work_dir=folder,
        store_dir=folder,
        data_sha256="",
    )


def accuracy(
    answer: Callable[[Tensor], Tensor], split: Split, device: torch.device, batch: int = 1000
) -> float:
    """Share of a split that `answer(pixels) -> logits` gets right."""
    hits = torch.zeros((), device=device)
    with torch.no_grad():
        for x, y in zip(split.images.split(batch), split.labels.split(batch), strict=True):
            pixels: Tensor = x.to(device).float().div(255)
            hits += (answer(pixels).argmax(1) == y.to(device)).sum()
    return float(hits) / len(split.images)

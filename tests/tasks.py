"""Tiny distillation tasks by hand, and reporters that remember or interrupt."""

import contextlib
from functools import cache
from pathlib import Path

import torch

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask
from robustdd_bench.protocol.datasets import load_digits
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.toolkit.seeds import Seeds

NORMALISE = Preprocessing("normalise", (0.3,), (0.38,))


# A trajectory method so small that a whole distillation takes a second.
SMALL = {
    "experts": 2,
    "expert_lr": 0.05,
    "expert_batch": 32,
    "student_steps": 4,
    "match_epochs": 1,
    "start_epochs": 2,
    "iterations": 5,
    "image_optimiser": "adam",
    "image_lr": 0.05,
    "alpha_init": 0.05,
}


class InterruptedRunError(Exception):
    """The stand-in for a kill."""


class RecordingReporter:
    """Keeps metrics as they come; raises InterruptedRunError at a step, if asked to."""

    def __init__(self, interrupt_at=None):
        self.values = {}
        self.steps = []
        self.notes = []
        self._interrupt_at = interrupt_at

    @contextlib.contextmanager
    def progress(self, title, total):
        yield self

    def advance(self, steps=1):
        pass

    def metrics(self, step, **values):
        if self._interrupt_at is not None and step >= self._interrupt_at:
            raise InterruptedRunError
        self.steps.append(step)
        for name, value in values.items():
            self.values.setdefault(name, []).append(float(value))

    def note(self, text):
        self.notes.append(text)


@cache
def digits():
    return load_digits(Path(), False).train


def digits_task(
    work_dir,
    *,
    ipc=2,
    classes=4,
    per_class=24,
    seed=0,
    width=8,
    preprocessing=NORMALISE,
    allow_flip=False,
    uint8=False,
    device="cpu",
):
    """`per_class` digits of the first classes (one fewer of class 0), a ConvNet-2."""
    split = digits()
    keep = []
    for k in range(classes):
        count = per_class - 1 if k == 0 else per_class
        keep.append(torch.nonzero(split.labels == k).flatten()[:count])
    index = torch.cat(keep)
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    images, device = split.images[index], torch.device(device)
    if uint8:
        images = (images * 255).round().to(torch.uint8)
    options, shape = {"depth": 2, "width": width}, images.shape[1:]

    def networks(kind):
        return NetworkFactory(convnet, options, shape, classes, kind, images, device)

    return DistillTask(
        images=images.to(device),
        labels=split.labels[index].to(device),
        num_classes=classes,
        ipc=ipc,
        network=networks(preprocessing),
        preprocessing=preprocessing,
        threat=ThreatModel("Linf", 0.1),
        augmentation="none",
        device=device,
        seeds=Seeds(seed, "digits-tiny", "test"),
        work_dir=Path(work_dir),
        store_dir=Path(work_dir) / "store",
        data_sha256="0" * 64,
        allow_flip=allow_flip,
        network_with=networks,
    )

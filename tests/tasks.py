"""Tiny distillation tasks by hand, and reporters that remember or interrupt."""

import contextlib
from functools import cache
from pathlib import Path

import torch
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.datasets import load_digits
from robustdd_bench.protocol.networks import NetworkFactory, RegisteredNetworks, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import Seeds, isolated_rng
from robustdd_bench.toolkit.fast.capture import Replayer
from robustdd_bench.toolkit.snapshots import snapshot_steps

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
        self.shown = {}
        self.worked = {}
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

    def images(self, step, total, current):
        if step in snapshot_steps(total):
            self.shown[step] = current()

    def work(self, items, unit):
        self.worked[unit] = self.worked.get(unit, 0) + items


def replay_steps(monkeypatch):
    """Make steps on the CPU what they are on a GPU: the first of a key does the work of all.

    Each is done, undone and done again, as before it is captured, so that what it changes and the
    `Replayer` was not told of is changed twice.
    """
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")

    def run(self, key, step):
        step = self._first.setdefault(key, step)
        tensors, states = self._save()
        step()
        self._restore(tensors, states)
        step()

    monkeypatch.setattr(Replayer, "run", run)


class Counting(nn.Module):
    """Grows with each call in train mode: a network that depends on a buffer which it changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        return x * (1 + 0.1 * self.calls)


def counting_network(seed):
    """A network of 8x8 digits of four classes, with batch norm and a buffer that matters."""
    with isolated_rng(seed):
        body = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            Counting(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 4),
        )
    return nn.Sequential(nn.Identity(), body)


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
        networks=RegisteredNetworks(
            collect(get_plugin_manager()).entries["networks"], classes, images, device
        ),
    )

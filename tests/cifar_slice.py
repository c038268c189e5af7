"""A real slice of CIFAR-10 as a dataset, registered by a plugin, and a track on it, for tests."""

import os
from functools import cache
from pathlib import Path

import torch

from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.protocol.datasets import ImageData, Split, load_cifar10

VARIABLE = "ROBUSTDD_CIFAR10_ROOT"
ROOT = os.environ.get(VARIABLE, "")
REASON = f"needs CIFAR-10: set {VARIABLE} to the folder that holds cifar-10-batches-py"

TRACK = """
name = "cifar10-slice"
version = 1
summary = "the first classes of CIFAR-10, a narrow ConvNet-3"

[data]
dataset = "cifar10-slice"
ipc = {ipc}
options = {{ classes = {classes}, train = {train}, test = {test} }}

[network]
name = "convnet"
options = {{ depth = 3, width = {width} }}

[preprocessing]
kind = "normalise"
mean = [0.4914, 0.4822, 0.4465]
std = [0.2470, 0.2435, 0.2616]

[students]
count = {students}
epochs = {epochs}
max_steps = {epochs}
batch_size = 64
augmentation = "color_crop_cutout_flip_scale_rotate"

[threat]
norm = "Linf"
ladder = ["2/255"]
headline = "2/255"

[[attacks]]
name = "fgsm"
"""


class Plugin:
    """What a stranger's package would register."""

    @hookimpl
    def robustdd_register_datasets(self, register):
        register("cifar10-slice", "cifar_slice:load_slice", "the first classes of CIFAR-10")


@cache
def _everything(root):
    return load_cifar10(Path(root), False)


def load_slice(root, download, *, classes, train, test):
    """The first images of the first classes, the same number of each."""
    data = _everything(str(root))

    def first(split, count):
        keep = [torch.nonzero(split.labels == k).flatten()[:count] for k in range(classes)]
        index = torch.cat(keep).sort().values
        return Split(split.images[index], split.labels[index])

    return ImageData(first(data.train, train), first(data.test, test), classes)


def write_track(folder, **values):
    path = folder / "slice.toml"
    path.write_text(TRACK.format(**values))
    return str(path)

"""Real slices of CIFAR-10 and CIFAR-100 as datasets of a plugin, and tracks on them, for tests."""

import os
from functools import cache
from pathlib import Path

import torch

from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.protocol.datasets import ImageData, Split, load_cifar10, load_cifar100

VARIABLE = "ROBUSTDD_CIFAR10_ROOT"
ROOT = os.environ.get(VARIABLE, "")
REASON = f"needs CIFAR-10: set {VARIABLE} to the folder that holds cifar-10-batches-py"
VARIABLE_100 = "ROBUSTDD_CIFAR100_ROOT"
ROOT_100 = os.environ.get(VARIABLE_100, "")
REASON_100 = f"needs CIFAR-100: set {VARIABLE_100} to the folder that holds cifar-100-python"

TRACK = """
name = "{dataset}"
version = 1
summary = "the first classes of CIFAR, a narrow ConvNet-3"

[data]
dataset = "{dataset}"
ipc = {ipc}
options = {{ classes = {classes}, train = {train}, test = {test} }}

[network]
name = "convnet"
options = {{ depth = 3, width = {width} }}

[preprocessing]
kind = "normalise"
mean = {mean}
std = {std}

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


STATISTICS = {
    "cifar10-slice": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100-slice": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}
"""Mean and standard deviation, as in the shipped tracks."""


class Plugin:
    """What a stranger's package would register."""

    @hookimpl
    def robustdd_register_datasets(self, register):
        register("cifar10-slice", "cifar_slice:load_slice", "the first classes of CIFAR-10")
        register("cifar100-slice", "cifar_slice:load_slice_100", "the first classes of CIFAR-100")


@cache
def _everything(load, root):
    return load(Path(root), False)


def load_slice(root, download, *, classes, train, test):
    """The first images of the first classes of CIFAR-10, the same number of each."""
    return _slice(_everything(load_cifar10, str(root)), classes, train, test)


def load_slice_100(root, download, *, classes, train, test):
    """The first images of the first classes of CIFAR-100, the same number of each."""
    return _slice(_everything(load_cifar100, str(root)), classes, train, test)


def _slice(data, classes, train, test):
    def first(split, count):
        keep = [torch.nonzero(split.labels == k).flatten()[:count] for k in range(classes)]
        index = torch.cat(keep).sort().values
        return Split(split.images[index], split.labels[index])

    return ImageData(first(data.train, train), first(data.test, test), classes)


def write_track(folder, dataset="cifar10-slice", **values):
    path = folder / "slice.toml"
    mean, std = STATISTICS[dataset]
    path.write_text(TRACK.format(dataset=dataset, mean=mean, std=std, **values))
    return str(path)

"""A dataset with a fault on request, and the smallest track on it, for tests."""

import torch

from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.protocol.datasets import ImageData, Split

TRACK = """
name = "tiny"
version = 1
summary = "two kinds of noise"
data = {{ dataset = "tiny", ipc = {ipc}, flip = false, options = {{ fault = "{fault}" }} }}
network = {{ name = "convnet", options = {{ depth = 1, width = 4 }} }}
students = {{ count = 1, epochs = 2 }}
threat = {{ norm = "Linf", ladder = [0.05], headline = 0.05 }}
attacks = [{{ name = "fgsm" }}]
"""


class Plugin:
    """What a stranger's package would register."""

    @hookimpl
    def robustdd_register_datasets(self, register):
        register("tiny", "bad_input:load_tiny", "two kinds of noise, with a fault on request")


def load_tiny(root, download, *, fault):
    """Dark and bright noise of 8x8, 24 images of class 0 and 20 of class 1; 20 test images."""
    generator = torch.Generator().manual_seed(0)

    def split(counts):
        labels = torch.cat([torch.full((count,), k) for k, count in enumerate(counts)])
        noise = torch.rand(len(labels), 1, 8, 8, generator=generator)
        return Split(0.5 * noise + 0.5 * labels.view(-1, 1, 1, 1), labels)

    train, test = split((24, 20)), split((10, 10))
    if fault == "nan":
        train.images[7, 0, 3, 3] = torch.nan
    elif fault == "missing class":
        train = train.take(torch.nonzero(train.labels == 0).flatten())
    return ImageData(train, test, 2)


def write_track(folder, *, ipc=2, fault="none"):
    path = folder / "tiny.toml"
    path.write_text(TRACK.format(ipc=ipc, fault=fault))
    return str(path)

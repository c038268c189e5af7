"""Files in exactly the layouts that published codes write, and hostile ones."""

from __future__ import annotations

import collections
import io
import zipfile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN, STD = (0.3, 0.5, 0.4), (0.2, 0.25, 0.3)


def digits_like(per_class=2, channels=1, size=8, classes=10, seed=0):
    """Synthetic pixels that leave [0,1] here and there, and labels, class by class."""
    generator = torch.Generator().manual_seed(seed)
    shape = (classes * per_class, channels, size, size)
    images = torch.rand(shape, generator=generator) * 1.4 - 0.2
    return images, torch.arange(classes).repeat_interleave(per_class)


def normalised(images: Tensor, mean=MEAN, std=STD) -> Tensor:
    """What the networks of the published codes see."""
    columns = (torch.tensor(values)[: images.shape[1]].view(1, -1, 1, 1) for values in (mean, std))
    mean_1C11, std_1C11 = columns
    return (images - mean_1C11) / std_1C11


def torch_bytes(value, *, legacy=False):
    """What `torch.save` writes today, or wrote before version 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def rezipped(content: bytes, change, *, compression=zipfile.ZIP_STORED) -> bytes:
    """A torch file with its entries changed: `change(name, bytes) -> bytes`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename, old.read(entry))
            new.writestr(entry.filename, data, compress_type=compression)
    return buffer.getvalue()


def write_dc(path, *sets, numpy=1, legacy=False, key="data"):
    """res_*.pt of DC, with the accuracies as numpy 1 or 2 pickles them."""
    accuracies = {"ConvNet": [np.float64(0.25), np.float64(0.5)] * len(sets)}
    content = torch_bytes(
        {key: [list(pair) for pair in sets], "accs_all_exps": accuracies}, legacy=legacy
    )
    # The name of a global is a line of the pickle; protocol 2 notes no lengths beside it.
    new, old = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"
    names = {1: old, 2: new}

    def renamed(name, data):
        data = data.replace(old, new).replace(new, names[numpy])
        assert (names[numpy] in data) or not name.endswith("data.pkl")
        return data

    content = renamed("data.pkl", content) if legacy else rezipped(content, renamed)
    path.write_bytes(content)
    return path


def write_mtt(folder, images, labels, *, rate=None, name="best"):
    """images_*.pt, labels_*.pt and lr_*.pt of MTT and DATM; the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(images, folder / f"images_{name}.pt")
    torch.save(labels, folder / f"labels_{name}.pt")
    if rate is not None:
        torch.save(rate, folder / f"lr_{name}.pt")
    return folder / f"images_{name}.pt"


def write_folder(root, images, labels, names, *, suffix="png"):
    """Images in the folders of their classes; pixels are rounded to bytes."""
    counts: collections.Counter[int] = collections.Counter()
    for image, label in zip(images, labels.tolist(), strict=True):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        bytes_CHW = image.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        pixels = bytes_CHW[0] if len(bytes_CHW) == 1 else bytes_CHW.transpose(1, 2, 0)
        number = counts[label]
        Image.fromarray(pixels).save(folder / f"class{label:03d}_id{number:03d}.{suffix}")
        counts[label] += 1
    return root


class Calls:
    """Pickled, this asks whoever reads it to call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

"""Small folders laid out as Tiny ImageNet and ImageNet are, and layouts that fit them, for tests.

Only the numbers of classes and images are smaller; what the real layouts want is tested by them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.protocol.imagenet.layouts import SUBSET_LAYOUTS, TINY_LAYOUT
from robustdd_bench.protocol.imagenet.loaders import load_layout

TINY = dataclasses.replace(TINY_LAYOUT, wnids=TINY_LAYOUT.wnids[:4], train=(3, 3), test=2)
WOOF = dataclasses.replace(SUBSET_LAYOUTS["imagewoof"], train=(2, 3), test=2)
FORMS = ("annotations", "folders", "folders of images", "images of folders")


def colour(split: str, k: int, i: int) -> tuple[int, int, int]:
    """Of image i of class k, such that JPEG keeps it to a level or two."""
    return (60 * k % 256, 40 * i + 20, 200 if split == "train" else 90)


def save(path: Path, pixels: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, pixels).save(path, quality=95)


def write_tiny(root: Path, form: str = "annotations") -> Path:
    """tiny-imagenet-200 with val/ in one of the forms that people have."""
    base = root / "tiny-imagenet-200"
    lines = []
    for k, wnid in enumerate(TINY.wnids):
        for i in range(3):
            save(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", colour("train", k, i))
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t63\t63\n")
        for i in range(2):
            name = f"val_{10 * i + 14 - k}.JPEG"  # not in the order of classes
            where = {
                "annotations": base / "val/images",
                "folders": base / "val" / wnid,
                "folders of images": base / "val" / wnid / "images",
                "images of folders": base / "val/images" / wnid,
            }[form]
            save(where / name, colour("val", k, i))
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    if form != "folders":  # some copies keep the list
        (base / "val/val_annotations.txt").write_text("".join(reversed(lines)))
    (base / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(TINY.wnids)))
    return base


def write_woof(root: Path, size: tuple[int, int] = (150, 140)) -> Path:
    """A folder of ImageNet with the ten classes of ImageWoof and another one."""
    base = root / "imagenet"
    for k, wnid in enumerate((*WOOF.wnids, "n01440764")):
        for i in range(2 + k % 2):
            save(base / "train" / wnid / f"{wnid}_{i}.JPEG", colour("train", k, i), size)
        for i in range(2):
            save(base / "val" / wnid / f"ILSVRC2012_val_{k:04}{i}.JPEG", colour("val", k, i), size)
    return base


class Plugin:
    """The small folders as data sets."""

    @hookimpl
    def robustdd_register_datasets(self, register):
        register("small-tiny", "image_trees:load_small_tiny", "four classes of Tiny ImageNet")
        register("small-woof", "image_trees:load_small_woof", "ImageWoof with few images")


def load_small_tiny(root, download):
    return load_layout(TINY, root, download, 64, None)


def load_small_woof(root, download):
    return load_layout(WOOF, root, download, 128, "stretch")


def read_colours(images) -> np.ndarray:
    """The mean colour of each image, (N,3)."""
    return images.float().mean((2, 3)).numpy()

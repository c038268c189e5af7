"""What `robustdd_bench.evaluation.overlap` says of honest images, and of copies.

    python scripts/study_overlap.py digits
    python scripts/study_overlap.py cifar10 --data-root data

Prints JSON: the share of images taken out of the training split that are near a test image (an
image of neither split would be judged so), and of disguised copies of test images that are found;
for digits, the smallest share (1 - r to test) / (1 - r to train) over all published sets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.overlap import _closest, overlap
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.datasets import ImageData


def disguises(images: Tensor) -> dict[str, Tensor]:
    """Copies (n,C,H,W) that look like the images."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    return {
        "copy": images,
        "copy, rounded to 8 bits": (images * 255).round() / 255,
        "mirrored": images.flip(3),
        "inverted": 1 - images,
        "half the contrast": 0.25 + images / 2,
        "noise of sd 2/255": images + noise * 2 / 255,
        "noise of sd 8/255": images + noise * 8 / 255,
        "noise of sd 16/255": images + noise * 16 / 255,
        "shifted by a pixel": images.roll(1, 3),
    }


def study(data: ImageData, count: int) -> dict[str, object]:
    """The figures of a dataset."""
    train, test = data.train.pixels(), data.test.pixels()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train), generator=generator)
    held, kept = order[:count], order[count:]
    found = overlap(train[held], train[kept], test)
    chosen = test[torch.randperm(len(test), generator=generator)[:count]]
    start = time.perf_counter()
    copies = {
        name: {"images": o.images, "exact": o.exact_test, "near": o.near_test}
        for name, images in disguises(chosen).items()
        for o in [overlap(images, train, test)]
    }
    wall = (time.perf_counter() - start) / len(copies)
    return {
        "images": count,
        "of neither split": {"exact": found.exact_test, "near": found.near_test},
        "copies of test images": copies,
        "seconds a comparison": round(wall, 2),
    }


def published(root: Path, data: ImageData) -> dict[str, object]:
    """The published sets of a board."""
    train, test = data.train.pixels(), data.test.pixels()
    shares, near, exact, sets = [], 0, 0, 0
    for path in sorted(root.glob("results/digits-*/*/*/distilled.safetensors")):
        images = DistilledSet.load(path).images
        found = overlap(images, train, test)
        sets, near, exact = sets + 1, near + found.near_test, exact + found.exact_test
        _, r_train = _closest(images.clamp(0, 1), train)
        _, r_test = _closest(images.clamp(0, 1), test)
        shares.append((1 - r_test) / (1 - r_train).clamp_min(1e-9))
    share = torch.cat(shares)
    return {
        "sets": sets,
        "images": len(share),
        "exact": exact,
        "near": near,
        "smallest share": round(float(share.min()), 3),
        "median share": round(float(share.median()), 3),
    }


def main() -> None:
    """Print the figures of a dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=("digits", "cifar10"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    registry = collect(get_plugin_manager())
    data = registry.get("datasets", given.dataset).load()(given.data_root, False)
    result = study(data, given.count or (300 if given.dataset == "digits" else 1000))
    if given.dataset == "digits":
        result["published sets"] = published(Path("leaderboard"), data)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Selection: the crops of real images that a teacher is surest of (RDED, Sun et al. 2024).

Of each class some real images are drawn; of each of them some random crops, resized to a tile of
the image to be made; the crop with the smallest cross-entropy stands for its image, and the images
with the smallest ones are kept. Tiles smaller than an image are padded with zeros, in the network's
input space, when the teacher sees them, as in the published code. `factor`**2 tiles fill an image.

Shapes: M images of a class, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.teachers.recovery import random_crop

_SQUARE = (1.0, 1.0)


def surest_crops(
    task: DistillTask,
    network: nn.Module,
    index: Tensor,
    label: int,
    *,
    count: int,
    crops: int,
    smallest: float,
    size: Sequence[int],
    seeds: Seeds,
) -> Tensor:
    """The crops of one class that a teacher is surest of, the surest first.

    Args:
        task: the training images.
        network: the teacher, pixels to logits.
        index: the images (M,) of the class that are looked at.
        label: the class.
        count: how many crops to give, at most M.
        crops: how many are tried of each image.
        smallest: smallest share of an image's area in a crop.
        size: height and width of a tile.
        seeds: of the crops.

    Returns:
        (count,C,*size), pixels in [0,1].
    """
    layer, body = split_network(network)
    source = seeds.generator("crops", label)
    best = torch.full((len(index),), float("inf"), device=task.device)
    tiles = torch.zeros((len(index), task.images.shape[1], *size), device=task.device)
    pixels, shape = task.pixels(index), task.images.shape[-2:]
    target = torch.full((len(index),), label, device=task.device)
    for _ in range(crops):
        drawn = [random_crop(shape, smallest, source, _SQUARE) for _ in range(len(index))]
        tried = torch.cat([crop(pixels[i : i + 1], size) for i, crop in enumerate(drawn)])
        with torch.no_grad():
            logits = body(padded(layer(tried), shape))
            loss = F.cross_entropy(logits, target, reduction="none")
        better = loss < best
        best = torch.where(better, loss, best)
        tiles = torch.where(better.view(-1, 1, 1, 1), tried, tiles)
    return tiles[best.argsort(stable=True)[:count]].clamp(0, 1)


def padded(x: Tensor, shape_HW: Sequence[int]) -> Tensor:
    """Images (B,C,h,w) in the middle of zeros, (B,C,H,W)."""
    down, right = (full - part for full, part in zip(shape_HW, x.shape[-2:], strict=True))
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


def mosaics(tiles: Tensor, count: int, factor: int, shape_HW: Sequence[int]) -> Tensor:
    """Images of `factor` by `factor` tiles.

    Tile k of image i is `tiles[k * count + i]`, row after row: the surest tiles of all images come
    first, as in the published code.

    Args:
        tiles: (count * factor**2, C, h, w).
        count: images.
        factor: tiles along an edge.
        shape_HW: height and width of an image; the first rows and columns of tiles are a pixel
            larger where it cannot be divided.

    Returns:
        (count,C,H,W).
    """
    sizes = [[full // factor + (i < full % factor) for i in range(factor)] for full in shape_HW]
    rows = []
    for i in range(factor):
        row = []
        for j in range(factor):
            k = i * factor + j
            part = tiles[k * count : (k + 1) * count]
            wanted = (sizes[0][i], sizes[1][j])
            if tuple(part.shape[-2:]) != wanted:
                part = F.interpolate(part, size=wanted)
            row.append(part)
        rows.append(torch.cat(row, 3))
    return torch.cat(rows, 2)

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
    source = seeds.generator("crops", label)
    pixels, shape = task.pixels(index), task.images.shape[-2:]
    tried = []
    for _ in range(crops):
        drawn = [random_crop(shape, smallest, source, _SQUARE) for _ in range(len(index))]
        tried.append(torch.cat([crop(pixels[i : i + 1], size) for i, crop in enumerate(drawn)]))
    # Antialiased weights add up to 1, but for rounding.
    return surest(network, torch.stack(tried).clamp_(0, 1), label, count, shape)


def surest(
    network: nn.Module, tried: Tensor, label: int, count: int, shape_HW: Sequence[int]
) -> Tensor:
    """Of each image the crop with the smallest cross-entropy, and of these the smallest ones.

    Args:
        network: the teacher, pixels to logits.
        tried: crops (T,M,C,h,w) of M images, in pixel space.
        label: the class of all of them.
        count: how many to give, at most M.
        shape_HW: height and width of what the teacher sees.

    Returns:
        (count,C,h,w), the surest first.
    """
    layer, body = split_network(network)
    losses = []
    with torch.no_grad():
        for crops in tried:
            logits = body(padded(layer(crops), shape_HW))
            target = torch.full((len(crops),), label, device=crops.device)
            losses.append(F.cross_entropy(logits, target, reduction="none"))
    best, which = torch.stack(losses).min(0)
    chosen = tried[which, torch.arange(tried.shape[1], device=tried.device)]
    return chosen[best.argsort(stable=True)[:count]]


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

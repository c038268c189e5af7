"""Are distilled images copies of images that students are judged on, or of training images?

Pixels are in [0,1]; distilled ones are clamped to it first. Two measures, each over the image and
its mirror image:

- **exact**: no pixel differs by more than one of 255 levels, as it is or inverted (1 - x).
- **correlation**: the size of Pearson's correlation over all pixels, which contrast, brightness and
  inversion do not change. Among the nearest images shifts are tried too, of one pixel for each
  16 pixels of the image's side.

An image is a copy of a training image if it is exactly one. It is an exact copy of a judged image
if it is exactly one and no copy of a training image: both splits of a dataset can hold the same
image. It is *near* a judged image if its correlation r to the nearest one is at least .9, and 1 - r
is at most a third of what it is for the nearest training image. A blend of training images lies
near many images of its class, about equally near to both splits; a copy does not.

Both are calibrated by `scripts/study_overlap.py` (torch 2.14.1, on a CPU). None of the 5,670 images
of the 81 published digits sets is near a test image: the smallest share of 1 - r is .43 of that to
the training images, the median 2.1. Nor is any of 300 digits and of 200 CIFAR-10 images that were
taken out of the training split, so that they are of neither. Of as many disguised copies of test
images all are found where they are rounded, mirrored, inverted, of half the contrast or under noise
of 2/255; under noise of 16/255 it is 297 of the digits and 179 of the photographs. Copies shifted
by a pixel are found on CIFAR-10 (200 of 200) and not on digits, which are too small for shifts.
CIFAR-10 is known to hold near duplicates of test images among its training images (Barz and Denzler
2020); a training image is never near.

Search is exhaustive in float32 over whole images and mirror images; the nearest few of each are
measured again in float64. Shapes: n distilled images, N others, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CORRELATION = 0.9
"""Least correlation of an image that is near another one."""
RATIO = 1 / 3
"""Most that 1 - r may be of what it is for the other split."""
_LEVEL = 1 / 255 + 1e-6
_NEAREST = 8
"""Images of each split that are looked at again."""
_SHIFT = 16
"""Pixels of an image's side for each pixel of shift."""
_FLOATS = 2**24
"""Correlations held at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """How many images of a set are copies of others."""

    images: int
    exact_test: int
    """Exact copies of judged images that are no copies of training images."""
    near_test: int
    """Further images that are near a judged image, and not as near to any training image."""
    exact_train: int
    """Exact copies of training images."""
    near_train: int
    """Further images that are near a training image, and not as near to any judged one."""
    closest_test: float
    """The largest correlation to a judged image, of images that are no copies of training images;
    0 where all are."""


def overlap(images: Tensor, train: Tensor, test: Tensor) -> Overlap:
    """Compare a set with the images of both splits.

    Args:
        images: the set (n,C,H,W), on any device, where the comparison is made.
        train: training images (N,C,H,W), uint8 or float in [0,1].
        test: the images that students are judged on, as `train`.
    """
    pixels = images.detach().float().clamp(0, 1)
    exact_train, r_train = _closest(pixels, train)
    exact_test, r_test = _closest(pixels, test)
    exact_test &= ~exact_train
    other = ~exact_train & ~exact_test

    def near(r: Tensor, elsewhere: Tensor) -> int:
        return int((other & (r >= CORRELATION) & (1 - r <= RATIO * (1 - elsewhere))).sum())

    left = r_test[~exact_train]
    return Overlap(
        images=len(pixels),
        exact_test=int(exact_test.sum()),
        near_test=near(r_test, r_train),
        exact_train=int(exact_train.sum()),
        near_train=near(r_train, r_test),
        closest_test=round(float(left.max()), 6) if len(left) else 0.0,
    )


def _closest(pixels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image (n,C,H,W) is exactly one of others, and its largest correlation; (n,)."""
    exact = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    largest = torch.zeros(len(pixels), dtype=torch.float64, device=pixels.device)
    for mirrored in (pixels, pixels.flip(3)):
        places = _nearest(mirrored, others)
        step = max(1, _FLOATS // (4 * places.shape[1] * pixels[0].numel()))
        for start in range(0, len(pixels), step):
            part = slice(start, start + step)
            one = mirrored[part].double().unsqueeze(1)
            found = _double(others[places[part].to(others.device)].to(pixels.device))
            for copy in (one, 1 - one):
                gap = (copy - found).abs().flatten(2).amax(2)
                exact[part] |= (gap <= _LEVEL).any(1)
            r = torch.stack([_correlation(a, b) for a, b in _shifted(one, found)])
            largest[part] = torch.maximum(largest[part], r.amax(2).amax(0))
    return exact, largest


def _nearest(pixels: Tensor, others: Tensor) -> Tensor:
    """Indices (n,k) of the others with the largest correlations, found in float32."""
    wanted = _unit(pixels.flatten(1))
    count = min(_NEAREST, len(others))
    size = max(count, _FLOATS // max(len(pixels), pixels[0].numel()))
    values = torch.full((len(pixels), count), -1.0, device=pixels.device)
    places = torch.zeros((len(pixels), count), dtype=torch.int64, device=pixels.device)
    for start in range(0, len(others), size):
        block = _unit(others[start : start + size].to(pixels.device).flatten(1).float())
        found, where = (wanted @ block.T).abs().topk(min(count, len(block)), dim=1)
        merged = torch.cat([values, found], 1)
        values, order = merged.topk(count, dim=1)
        places = torch.cat([places, where + start], 1).gather(1, order)
    return places


def _unit(rows: Tensor) -> Tensor:
    """Rows (N,d) without their mean, of length 1; a constant row is 0."""
    centred = rows - rows.mean(1, keepdim=True)
    unit: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return unit


def _double(images: Tensor) -> Tensor:
    return images.double() / 255 if images.dtype == torch.uint8 else images.double()


def _shifted(one: Tensor, found: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The two as they are, then what they have in common when one is shifted."""
    yield one, found
    height, width = one.shape[-2:]
    most = min(height, width) // _SHIFT
    inner = one[..., most : height - most, most : width - most]
    for down in range(2 * most + 1):
        for right in range(2 * most + 1):
            if most and (down, right) != (most, most):
                rows = slice(down, down + height - 2 * most)
                columns = slice(right, right + width - 2 * most)
                yield inner, found[..., rows, columns]


def _correlation(one: Tensor, found: Tensor) -> Tensor:
    """Sizes of the correlations (n,k) of (n,1,C,H,W) and (n,k,C,H,W)."""
    a, b = one.flatten(2), found.flatten(2)
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    lengths = a.norm(dim=2) * b.norm(dim=2)
    sizes: Tensor = ((a * b).sum(2) / lengths.clamp_min(1e-12)).abs()
    return sizes

"""Witnesses: adversarial examples kept, so that anyone can check a claim in one forward pass.

Robust accuracy is an upper bound; a witness proves that an example falls. For each student and
each example that falls at some eps the suite keeps the witness of the smallest such eps, which is
one for every larger eps too.

Where rounding to the grid of 8-bit images (inwards, so that it stays in the ball) still fools the
student, a witness is kept as its distance from the image on that grid, modulo 256 and deflated;
otherwise as float32.

Shapes: N examples of the split, M witnesses, C channels, H height, W width.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.robustness import check_examples
from robustdd_bench.files import read_safetensors, write_safetensors

FORMAT = "robustdd-witnesses-1"


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Adversarial examples of several students; on the CPU."""

    student: Tensor
    """(M,) int64."""
    place: Tensor
    """(M,) int64, the example's place in the split."""
    eps: Tensor
    """(M,) float64, the smallest eps at which it was found."""
    images: Tensor
    """(M,C,H,W) float32 in [0,1]."""

    def __len__(self) -> int:
        return len(self.place)

    def take(self, index: Tensor) -> Witnesses:
        """Some of them."""
        return Witnesses(
            self.student[index], self.place[index], self.eps[index], self.images[index]
        )


def on_grid(adversarial: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """The nearest 8-bit images (M,C,H,W) uint8; for Linf inside the ball."""
    if threat.norm == "Linf":
        low = (images.double() - threat.eps).clamp_min(0).mul(255).sub(1e-6).ceil()
        high = (images.double() + threat.eps).clamp_max(1).mul(255).add(1e-6).floor()
    else:
        low, high = torch.zeros_like(images), torch.full_like(images, 255)
    wanted = adversarial.to(low.dtype).mul(255).round()
    return torch.minimum(torch.maximum(wanted, low), high).clamp(0, 255).to(torch.uint8)


def rounded(
    model: nn.Module,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    batch_size: int,
) -> Tensor:
    """Witnesses (M,C,H,W) with those put on the 8-bit grid that are still witnesses there."""
    if len(images) == 0:
        return adversarial
    grid = on_grid(adversarial, images, threat).to(images.dtype).div(255)
    holds, _ = check_examples(model, images, grid, labels, threat, batch_size)
    return torch.where(holds[:, None, None, None], grid, adversarial)


def merge(parts: Sequence[Witnesses]) -> Witnesses:
    """One witness for each student and example: the smallest eps, then the earliest part."""
    student = torch.cat([part.student for part in parts])
    place = torch.cat([part.place for part in parts])
    eps = torch.cat([part.eps for part in parts])
    images = torch.cat([part.images for part in parts])
    order = torch.argsort(eps, stable=True)
    key = torch.stack([student[order], place[order]], 1)
    _, which = torch.unique(key, dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1 if len(which) else 0,), len(which))
    first = first.scatter_reduce(0, which, torch.arange(len(which)), "amin")
    return Witnesses(student, place, eps, images).take(order[first])


def save(path: Path, found: Witnesses, images: Tensor, about: Mapping[str, str]) -> None:
    """Write witnesses.

    Args:
        path: the file.
        found: the witnesses.
        images: the split (N,C,H,W) float32 in [0,1], on the CPU.
        about: what they belong to.
    """
    grid = found.images.mul(255).round().to(torch.uint8)
    exact = (grid.float().div(255) == found.images).flatten(1).all(1)
    base = _grid_of(images[found.place[exact]])
    packed = zlib.compress((grid[exact] - base).numpy().tobytes(), 9)
    tensors = {
        "student": found.student.int(),
        "place": found.place.int(),
        "eps": found.eps,
        "exact": exact,
        "grid": torch.frombuffer(bytearray(packed), dtype=torch.uint8),
        "floats": found.images[~exact],
    }
    shape = json.dumps(list(images.shape[1:]))
    write_safetensors(path, tensors, {"format": FORMAT, "shape": shape, **about})


def load(path: Path, images: Tensor) -> tuple[Witnesses, dict[str, str]]:
    """Read what `save` wrote; it may come from a stranger.

    Args:
        path: the file.
        images: the split they are about, as for `save`.

    Raises:
        UsageError: missing, damaged, or about other images.
    """
    tensors, about = read_safetensors(path)
    wrong = UsageError(f"{path} is not a file of witnesses for this dataset")
    names = {"student", "place", "eps", "exact", "grid", "floats"}
    if about.get("format") != FORMAT or set(tensors) != names:
        raise wrong
    shape = tuple(images.shape[1:])
    student, place, exact = tensors["student"].long(), tensors["place"].long(), tensors["exact"]
    floats, count = tensors["floats"], len(place)
    if (
        about.get("shape") != json.dumps(list(shape))
        or any(t.shape != (count,) for t in (student, place, exact, tensors["eps"]))
        or exact.dtype != torch.bool
        or tensors["eps"].dtype != torch.float64
        or tensors["grid"].dtype != torch.uint8
        or floats.dtype != torch.float32
        or tuple(floats.shape) != (count - int(exact.sum()), *shape)
        or bool(((place < 0) | (place >= len(images)) | (student < 0)).any())
    ):
        raise wrong
    size = int(exact.sum()) * math.prod(shape)
    inflate = zlib.decompressobj()
    try:  # never more than is expected: a small file could hold gigabytes
        data = inflate.decompress(tensors["grid"].numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise wrong from error
    if len(data) != size or not inflate.eof:
        raise wrong
    found = torch.empty(count, *shape)
    if size:
        offset = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, *shape)
        found[exact] = (_grid_of(images[place[exact]]) + offset).float().div(255)
    found[~exact] = floats
    return Witnesses(student, place, tensors["eps"], found), about


def _grid_of(images: Tensor) -> Tensor:
    return images.mul(255).round().to(torch.uint8)


def proven(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    found: Witnesses,
    threat: ThreatModel,
    batch_size: int,
) -> Tensor:
    """Which examples of the split fall at an eps: bool (N,), from one student's witnesses.

    Each witness is checked in a forward pass: finite, in [0,1], in the ball, misclassified.

    Args:
        model: the student.
        images: the split (N,C,H,W) in [0,1].
        labels: (N,) int64.
        found: the witnesses of that student; those found at a larger eps are left aside.
        threat: norm and eps.
        batch_size: of the forward pass.
    """
    falls = torch.zeros(len(images), dtype=torch.bool)
    use = found.take((found.eps <= threat.eps).nonzero().squeeze(1))
    if len(use):
        place = use.place.to(images.device)
        moved = use.images.to(images.device)
        holds, _ = check_examples(model, images[place], moved, labels[place], threat, batch_size)
        falls[use.place[holds.cpu()]] = True
    return falls

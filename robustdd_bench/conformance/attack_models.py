"""The small models that attacks are checked on, and images for them.

Shapes: B examples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import AttackResult, Model, RoutedModel
from robustdd_bench.conformance.findings import FailedCheckError
from robustdd_bench.seeds import derive_seed, isolated_rng

CLASSES = 3
SHAPE_CHW = (1, 8, 8)


class Smooth(nn.Module):
    """Two layers with tanh between them.

    They compute in float64, so that float32 examples get the same bits whatever the batch.
    """

    def __init__(self, hidden: int | None = 16, name: str = "model") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(derive_seed("conformance", name))
        pixels = math.prod(SHAPE_CHW)
        sizes = (pixels, hidden, CLASSES) if hidden else (pixels, CLASSES)
        self.weights = nn.ParameterList(
            nn.Parameter(
                torch.randn(a, b, generator=generator, dtype=torch.float64) * 4 / math.sqrt(a),
                requires_grad=False,
            )
            for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B,K)."""
        h = x_BCHW.double().flatten(1) - 0.5
        for i, weight in enumerate(self.weights):
            h = (h.tanh() if i else h) @ weight
        return h.to(x_BCHW.dtype)


class PairOfStudents(RoutedModel):
    """Two students as one model."""

    def __init__(self, students: tuple[nn.Module, nn.Module], owner: Tensor) -> None:
        self._students, self._owner = students, owner

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B,K); B is the number of rows."""
        if len(images) != len(self._owner):
            raise FailedCheckError(
                f"the model of {len(self._owner)} rows was called with {len(images)} images: take "
                "`rows(model, keep)` for the rows that are kept"
            )
        answers = torch.stack([student(images) for student in self._students])
        return answers[self._owner, torch.arange(len(images))]

    def select(self, keep: Tensor) -> RoutedModel:
        """The model for the rows at `keep`."""
        return PairOfStudents(self._students, self._owner[keep])


def with_batch_norm() -> nn.Module:
    """A network whose buffers move as soon as it runs in train mode; frozen, in eval mode."""
    with isolated_rng(derive_seed("conformance", "batch norm")):
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, CLASSES),
        )
    return network.eval().requires_grad_(False)


def examples(model: Model, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images with black and white pixels among them, the model's own labels, and indices."""
    generator = torch.Generator().manual_seed(derive_seed("conformance", "examples"))
    images = (torch.rand(count, *SHAPE_CHW, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    index = torch.randperm(1000, generator=generator)[:count]
    with torch.no_grad():
        return images, model(images).argmax(1), index


def images_of(result: object) -> Tensor:
    """The images of what `perturb` returned.

    Raises:
        FailedCheckError: it is no result, or holds no tensor.
    """
    if not isinstance(result, AttackResult):
        raise FailedCheckError(f"perturb returned {type(result).__name__}, not an AttackResult")
    if not isinstance(result.images, Tensor):
        raise FailedCheckError(f"perturb returned {type(result.images).__name__}, not a tensor")
    return result.images


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to NaN."""
    return one.shape == two.shape and bool(torch.isclose(one, two, 0, 0, equal_nan=True).all())

"""What attacks of minimum norm share: they look for the nearest adversarial example.

They know no eps. `perturb` returns what is nearest if it lies within eps, and else that point drawn
back into the ball, which counts as failed unless it still fools the model.

Shapes: B examples, M of them, C channels, H height, W width.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor

from robustdd_bench.attacks import Attack, AttackResult, AttackTask, Model, Norm, ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.seeds import ExampleGenerator


class Minimum(NamedTuple):
    """The nearest adversarial example of each image."""

    adversarial: Tensor
    """(B,C,H,W) in [0,1]; the image itself where none was found."""
    distance: Tensor
    """(B,), in the norm asked for; infinite where none was found."""
    success: Tensor
    """(B,) bool: whether one was found."""


class MinimumNorm(Attack):
    """An attack that looks for the nearest adversarial example; a subclass has `minimise`."""

    targets = True
    """Whether it can reach a given class."""

    @abc.abstractmethod
    def minimise(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        generator: ExampleGenerator,
        *,
        norm: Norm = "L2",
        targeted: bool = False,
    ) -> Minimum:
        """The nearest adversarial examples, at whatever distance.

        Args:
            model: pixels (B,C,H,W) in [0,1] to logits (B,K).
            images: (B,C,H,W) in [0,1].
            labels: (B,) classes to leave, or to reach if `targeted`.
            generator: the only source of randomness.
            norm: of the distance.
            targeted: which of the two the labels are.

        Raises:
            UsageError: the attack does not know this norm, or has no targeted version.
        """

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        images, threat = task.images, task.threat
        found = self.minimise(
            task.model,
            images,
            task.labels,
            task.generator,
            norm=threat.norm,
            targeted=threat.targeted,
        )
        return AttackResult(images=drawn_back(found, images, threat))

    def check(self, norm: Norm, targeted: bool) -> None:
        """Raise a UsageError if the attack has no version for this."""
        name = type(self).__name__
        if norm not in self.norms:
            known = " and ".join(self.norms)
            raise UsageError(f"{name} minimises {known} only; choose another attack for {norm}")
        if targeted and not self.targets:
            raise UsageError(f"{name} has no targeted version; choose another attack")


def drawn_back(found: Minimum, images: Tensor, threat: ThreatModel) -> Tensor:
    """What was found where it lies within eps, and else that point drawn back; (B,C,H,W)."""
    # The nearest point lies so close to the boundary that the rounding of a projection which
    # has nothing to do could carry it back.
    within = (found.distance <= threat.eps)[:, None, None, None]
    return torch.where(within, found.adversarial, threat.project(found.adversarial, images))


def distance(moved_BCHW: Tensor, images_BCHW: Tensor, norm: Norm) -> Tensor:
    """The distance of each example; (B,)."""
    return ThreatModel(norm, 0.0).distance(moved_BCHW, images_BCHW)


class Nearest:
    """Per example the nearest adversarial candidate so far. Nothing here waits for the device."""

    def __init__(self, images_BCHW: Tensor) -> None:
        self.images = images_BCHW.detach().clone()
        self.distance = torch.full(
            images_BCHW.shape[:1], torch.inf, dtype=images_BCHW.dtype, device=images_BCHW.device
        )

    def offer(
        self,
        candidates_MCHW: Tensor,
        success_M: Tensor,
        distance_M: Tensor,
        places_M: Tensor | None = None,
    ) -> None:
        """Take each successful candidate that is nearer than what is held.

        Args:
            candidates_MCHW: points in [0,1]; those that hold NaN are at distance NaN, and no NaN is
                ever nearer.
            success_M: whether each fools the model.
            distance_M: of each from its image.
            places_M: the examples they belong to; None: all, in their order.
        """
        images, held = self.images, self.distance
        if places_M is not None:
            images, held = images[places_M], held[places_M]
        nearer = success_M & (distance_M < held)
        images = torch.where(nearer[:, None, None, None], candidates_MCHW, images)
        held = torch.where(nearer, distance_M, held)
        if places_M is None:
            self.images, self.distance = images, held
        else:
            self.images = self.images.index_copy(0, places_M, images)
            self.distance = self.distance.index_copy(0, places_M, held)

    def result(self) -> Minimum:
        """What is held now."""
        return Minimum(self.images, self.distance, self.distance.isfinite())

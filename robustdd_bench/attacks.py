"""The interface of an attack, and the threat model: all that the author of an attack has to read.

Models are called with pixels in [0,1], shape (B,C,H,W), and return logits (B,K); normalisation is
a layer of the model, so gradients and the eps-ball are in pixel space.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from robustdd_bench.toolkit.randomness import ExampleGenerator

Model = Callable[[Tensor], Tensor]
Norm = Literal["Linf", "L2"]


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """What an adversary may do: move an image by at most `eps` in `norm`, inside [0,1]."""

    norm: Norm
    eps: float
    """In pixel units: 8/255 is about 0.031."""
    targeted: bool = False
    """If so, the labels given to an attack are the classes to reach, not those to leave."""

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the eps-ball around `images`, then of [0,1]; (B,C,H,W)."""
        delta = adversarial - images
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
            delta = delta * (self.eps / length).clamp_max(1.0)[:, None, None, None]
        return (images + delta).clamp(0, 1)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The distance of each example in `norm`; (B,)."""
        delta = (adversarial - images).flatten(1)
        return delta.abs().amax(1) if self.norm == "Linf" else delta.norm(dim=1)


class Attack(abc.ABC):
    """An attack on a classifier.

    A subclass has a nested frozen dataclass `Config` and implements `perturb`. Where the defaults
    are slow, a classmethod `quick_config()` may give the `Config` of `robustdd check-plugin`.
    """

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abc.abstractmethod
    def perturb(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: ExampleGenerator,
    ) -> Tensor:
        """Adversarial examples.

        Args:
            model: pixels (B,C,H,W) in [0,1] to logits (B,K); in eval mode, its parameters frozen.
            images: (B,C,H,W) float in [0,1].
            labels: (B,) int64, the true classes (or the targets, if `threat.targeted`).
            threat: norm and eps.
            generator: the only source of randomness; what it draws for an example does not depend
                on the batch the example is in.

        Returns:
            (B,C,H,W) in [0,1], within `threat` of `images`; per example the best one found.
        """

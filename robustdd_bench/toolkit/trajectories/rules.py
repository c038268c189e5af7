"""What trajectory methods change in the matching; the defaults are MTT's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The rules of one method, beside its `TrajectoryConfig`."""

    image_ema: float = 0.0
    """d of the average of the images, x' <- d x' + (1 - d) x after every iteration, which is then
    the set; 0: the last images are."""
    min_start_epoch: int = 0
    """The first epoch that a student starts from."""
    first_start_epochs: int = 0
    """Upper bound of the start epoch in the first iteration; 0: `start_epochs` from the first."""
    growth_iterations: int = 0
    """Iterations in which that bound grows to `start_epochs`, linearly; 0: it does not grow."""
    loss_limit: float = math.inf
    """An iteration whose loss is above it moves nothing."""
    correct_images: bool = False
    """Whether the set starts from real images that an expert classifies correctly."""
    expert_labels: bool = False
    """Whether learned labels start from the experts' logits instead of `label_confidence`: with
    `correct_images` the mean of those that are right, else the first expert's."""
    label_epoch: int = -1
    """The epoch of the experts that these two ask; -1: their last."""
    label_optimiser: Literal["adam", "sgd"] = "adam"
    """Optimiser of the labels' logits."""
    label_momentum: float = 0.0
    """Momentum of their SGD."""
    assigned_labels: bool = False
    """Whether each iteration's target network gives the images their labels."""
    direct: bool = False
    """Whether the gradient is TESLA's (`robustdd_bench.toolkit.trajectories.unroll`)."""

    def start_bound(self, iteration: int, start_epochs: int) -> int:
        """The bound, exclusive, of an iteration's start epoch (Guo et al. 2024, section 3.2).

        Args:
            iteration: 0 for the first.
            start_epochs: T, the bound at the end.
        """
        first = self.first_start_epochs
        if not 0 < first < start_epochs or self.growth_iterations == 0:
            return start_epochs
        grown = first + (start_epochs - first) * iteration // self.growth_iterations
        return min(grown, start_epochs)

"""The attack `corners`: random corners of the Linf ball, the worst of them for each image.

It asks the model for nothing but logits, so it also works where there are no gradients.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings
from robustdd_bench.errors import UsageError


class Corners(Attack):
    """Try random corners of the ball and keep the one with the largest loss."""

    @settings
    class Config:
        """Settings of `Corners`."""

        tries: Annotated[int, Field(ge=1, le=1_000_000)] = 100
        """Corners that are tried for each image."""

    @torch.no_grad()
    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        model, images, labels, threat = task.model, task.images, task.labels, task.threat
        if threat.norm != "Linf" or threat.targeted:
            raise UsageError("the attack 'corners' needs the norm Linf and no targets")
        best = images
        worst = cross_entropy(model(images), labels, reduction="none")
        for _ in range(self.config.tries):
            signs = task.generator.integers(images.shape[1:], 2).to(images) * 2 - 1
            corner = threat.project(images + threat.eps * signs, images)
            loss = cross_entropy(model(corner), labels, reduction="none")
            better = loss > worst
            best = torch.where(better[:, None, None, None], corner, best)
            worst = torch.where(better, loss, worst)
        return AttackResult(images=best)

"""Random noise: the floor under every attack.

An attack that uses gradients and breaks fewer examples than noise does is not working, or the
model hides its gradients (Carlini et al. 2019, "On evaluating adversarial robustness", section
5.2). Linf: uniform in the ball. L2: uniform on the sphere of radius eps. Then clipped to [0,1].
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from robustdd_attacks.common import Best, in_ball, judge, on_sphere
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings


class Noise(Attack):
    """Random noise, the worst of several draws for each example."""

    routed = True
    white_box = False

    @settings
    class Config:
        """Settings of `Noise`."""

        draws: Annotated[int, Field(ge=1, le=1_000_000)] = 10
        """Draws per example; the worst is kept."""

    @torch.no_grad()
    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        images, threat, generator = task.images, task.threat, task.generator
        best = Best(images)
        for _ in range(self.config.draws):
            if threat.norm == "Linf":
                x = in_ball(images, threat, generator)
            else:
                x = threat.project(images + threat.eps * on_sphere(images, generator), images)
            best.offer(x, *judge(task.model(x), task.labels, threat.targeted))
        return AttackResult(images=best.images)

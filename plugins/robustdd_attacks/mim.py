"""MIM: projected ascent along a momentum of the gradients.

Dong et al. 2018, "Boosting adversarial attacks with momentum", algorithm 1:
g_{t+1} = m g_t + grad / |grad|_1 and x_{t+1} = Project(x_t + a * direction(g_{t+1})), from the
image itself; the direction is the sign for Linf and, equation 10, the normalised g for L2.
Deviations: |grad|_1 is the mean over the pixels instead of the sum, a factor that no direction
sees; the steps add up to 2.5 eps as those of `pgd` do (the paper: `relative_step` 1); per example
the best iterate is returned; the gradient is that of a score with the direction of the
cross-entropy's, see `robustdd_attacks.common`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import ascend
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings


class MIM(Attack):
    """Gradient ascent with momentum; Linf and L2, targeted or not."""

    CITATION: ClassVar[str] = papers.MIM

    routed = True

    @settings
    class Config:
        """Settings of `MIM`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
        """Gradient steps."""
        relative_step: Annotated[float, Field(gt=0, le=1e6)] = 2.5
        """The steps add up to this many eps."""
        decay: Annotated[float, Field(ge=0, le=1000)] = 1.0
        """What is left of the momentum after a step; 0 is PGD without a random start."""

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`. Nothing is drawn from the generator."""
        config, images = self.config, task.images
        momentum = torch.zeros_like(images)
        tiny = torch.finfo(images.dtype).tiny

        def gather(gradient: Tensor) -> Tensor:
            nonlocal momentum
            length = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(tiny)
            moved: Tensor = config.decay * momentum + gradient / length
            momentum = moved
            return moved

        step = config.relative_step * task.threat.eps / config.steps
        best = ascend(task, images, config.steps, step, gather)
        return AttackResult(images=best.images)

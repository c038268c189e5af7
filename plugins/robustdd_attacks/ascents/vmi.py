"""VMI-FGSM: momentum along gradients that are corrected by those of the neighbourhood.

Wang and He 2021, "Enhancing the transferability of adversarial attacks through variance tuning"
(arXiv:2103.15571), algorithm 1:

    g_{t+1} = m g_t + (grad_t + v_t) / |grad_t + v_t|_1,   x_{t+1} = Project(x_t + a direction(g))
    v_{t+1} = mean_i grad(x_t + r_i) - grad_t,   r_i uniform in the ball of radius beta * eps, v_0=0

grad is the gradient of the cross-entropy. The neighbours are not clipped to [0,1], as in the
authors' code. The paper's cube of half-width beta * eps is a ball in L2.

Here gradients of several points are added, so their lengths count, and the score of
`robustdd_attacks.common` does not do: the cross-entropy is softplus(s) of it, whose gradient is
sigmoid(s) grad s. The factors are kept as logarithms and only their ratios are used, so that
float32 loses no gradient where the model is sure; g does not see a common factor, as it is
normalised.

Deviations: |.|_1 is the mean over the pixels instead of the sum, a factor that no direction sees;
the steps add up to 2.5 eps as those of `pgd` and `mim` do (the paper: `relative_step` 1); per
example the best iterate is returned. With `beta` 0 it is `mim`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, ascent, direction, judge, offsets
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings

_MOST = 80.0
"""exp of it is finite in float32."""


class VMIFGSM(Attack):
    """Variance-tuned gradient ascent with momentum; Linf and L2, targeted or not."""

    CITATION: ClassVar[str] = papers.VMI

    routed = True

    @settings
    class Config:
        """Settings of `VMIFGSM`; it costs `steps` x (1 + `neighbours`) gradients."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
        """Gradient steps."""
        relative_step: Annotated[float, Field(gt=0, le=1e6)] = 2.5
        """The steps add up to this many eps; unused if `step_size` is given."""
        step_size: Annotated[float, Field(gt=0, le=10_000)] | None = None
        """Length of a step in pixel units, in the norm of the threat model."""
        decay: Annotated[float, Field(ge=0, le=1000)] = 1.0
        """What is left of the momentum after a step."""
        neighbours: Annotated[int, Field(ge=1, le=100_000)] = 20
        """Points in the neighbourhood, for each step; DD-RobustBench has 5."""
        beta: Annotated[float, Field(ge=0, le=1000)] = 1.5
        """Radius of the neighbourhood, in eps."""

    @classmethod
    def quick_config(cls) -> VMIFGSM.Config:
        """Few neighbours, for `robustdd check-plugin`."""
        return cls.Config(neighbours=4)

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        config, images, threat = self.config, task.images, task.threat
        step = config.step_size or config.relative_step * threat.eps / config.steps
        tiny = torch.finfo(images.dtype).tiny
        best, x = Best(images), images.detach()
        momentum, variance = torch.zeros_like(images), torch.zeros_like(images)
        scale = torch.zeros_like(best.score)  # logarithm of the unit of `variance`
        for _ in range(config.steps):
            gradient, success, score = ascent(task.model, x, task.labels, threat.targeted)
            best.offer(x, success, score)
            here = _log_slope(score, threat.targeted)
            common = torch.maximum(here, scale)
            tuned = _times(gradient, here - common) + _times(variance, scale - common)
            length = tuned.abs().mean((1, 2, 3), keepdim=True).clamp_min(tiny)
            momentum = config.decay * momentum + tuned / length
            variance, scale = self._variance(task, x, gradient, here), here
            x = threat.project(x + step * direction(momentum, threat.norm), images)
        with torch.no_grad():
            best.offer(x, *judge(task.model(x), task.labels, threat.targeted))
        return AttackResult(images=best.images)

    def _variance(self, task: AttackTask, x: Tensor, gradient: Tensor, here_B: Tensor) -> Tensor:
        """Mean gradient of the neighbourhood less that at the point, over exp(here)."""
        config, threat = self.config, task.threat
        if not config.beta:
            return torch.zeros_like(x)
        total = torch.zeros_like(x)
        for _ in range(config.neighbours):
            moved = x + offsets(x, threat.norm, config.beta * threat.eps, task.generator)
            around, _, score = ascent(task.model, moved, task.labels, threat.targeted)
            total = total + _times(around, _log_slope(score, threat.targeted) - here_B)
        found: Tensor = total / config.neighbours - gradient
        return found


def _log_slope(score_B: Tensor, targeted: bool) -> Tensor:
    """Logarithm of the derivative of the cross-entropy in the score."""
    return F.logsigmoid(-score_B if targeted else score_B)


def _times(gradient_BCHW: Tensor, exponent_B: Tensor) -> Tensor:
    return gradient_BCHW * exponent_B.clamp_max(_MOST).exp()[:, None, None, None]

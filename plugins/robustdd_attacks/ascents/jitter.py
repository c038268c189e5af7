"""Jitter: projected ascent on the distance between noisy, rescaled probabilities and the label.

Schwinn, Raab, Nguyen, Zanca, Eskofier 2021, "Exploring misclassifications of robust neural networks
to enhance adversarial attacks" (arXiv:2105.10304), section 4:

    z' = softmax(scale * z / |z|_inf),   loss = |z' + noise - onehot(y)|_2^2,   noise ~ N(0, std^2)

The scale takes the saturation out of the softmax, the distance makes all classes count, and the
noise, drawn anew in each step, makes the steps try several of them. Under a targeted threat model
the distance to the target is made small.

The paper divides the loss of an example that is misclassified by the norm of its perturbation, to
make it smaller. No outcome sees that here, since the first point that is misclassified is kept, so
it is left out. As in `pgd`, the best iterate of all restarts is returned, and examples that are
broken leave before the next restart.

Logits that keep their ratios have no direction, so nothing moves: with two classes whose logits
are each other's negative that is so everywhere.

Shapes: B examples, K classes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, ascend, in_ball, restarts
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings


def jitter_loss(
    logits_BK: Tensor, labels_B: Tensor, noise_BK: Tensor, scale: float, targeted: bool
) -> Tensor:
    """What Jitter makes large (B,).

    Args:
        logits_BK: the model's outputs.
        labels_B: classes to leave, or to reach if `targeted`.
        noise_BK: what is added to the probabilities.
        scale: the largest magnitude of the rescaled logits.
        targeted: which of the two the labels are.
    """
    largest = logits_BK.abs().amax(1, keepdim=True)
    tiny = torch.finfo(logits_BK.dtype).tiny
    shares = F.softmax(scale * logits_BK / largest.clamp_min(tiny), dim=1) + noise_BK
    classes = torch.arange(logits_BK.shape[1], device=labels_B.device)
    wanted = (labels_B.unsqueeze(1) == classes).to(logits_BK.dtype)
    distance = (shares - wanted).square().sum(1)
    return -distance if targeted else distance


class Jitter(Attack):
    """Ascent on noisy, rescaled probabilities; Linf and L2, targeted or not."""

    CITATION: ClassVar[str] = papers.JITTER

    routed = True

    @settings
    class Config:
        """Settings of `Jitter`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
        """Gradient steps of each restart. DD-RobustBench takes 5 or 10."""
        relative_step: Annotated[float, Field(gt=0, le=1e6)] = 2.5
        """The steps of a restart add up to this many eps; unused if `step_size` is given."""
        step_size: Annotated[float, Field(gt=0, le=10_000)] | None = None
        """Length of a step in pixel units, in the norm of the threat model."""
        scale: Annotated[float, Field(gt=0, le=1000)] = 10.0
        """The largest magnitude of the logits in the softmax."""
        std: Annotated[float, Field(ge=0, le=100)] = 0.1
        """Standard deviation of the noise on the probabilities; 0: none."""
        random_start: bool = True
        """Start at a random point of the ball; otherwise at the image."""
        restarts: Annotated[int, Field(ge=1, le=10_000)] = 1
        """Runs with other noise; only examples still unbroken take part."""

        @model_validator(mode="after")
        def _restarts_differ(self) -> Self:
            if self.restarts > 1 and not (self.random_start or self.std):
                raise ValueError("restarts differ only with random_start = true or std > 0")
            return self

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        config, threat = self.config, task.threat
        step = config.step_size or config.relative_step * threat.eps / config.steps

        def climb(part: AttackTask, _places: Tensor, _turn: int) -> Best:
            def loss(logits: Tensor) -> Tensor:
                noise = torch.zeros_like(logits)
                if config.std:
                    noise = config.std * part.generator.normal(logits.shape[1:], logits.dtype)
                return jitter_loss(logits, part.labels, noise, config.scale, threat.targeted)

            x = part.images
            if config.random_start:
                x = in_ball(x, threat, part.generator)
            return ascend(part, x, config.steps, step, loss=loss)

        return AttackResult(images=restarts(task, config.restarts, climb))

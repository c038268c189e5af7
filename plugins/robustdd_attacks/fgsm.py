"""FGSM: one step of the gradient's sign to the edge of the ball.

Goodfellow, Shlens, Szegedy 2015, "Explaining and harnessing adversarial examples", section 4:
x + eps * sign(grad). For L2 the step is eps * grad / |grad|_2 (the FGM of Miyato et al. 2017).
Deviation: the gradient is taken of a score with the direction of the cross-entropy's gradient,
see `robustdd_attacks.common`.
"""

from __future__ import annotations

from typing import ClassVar

from robustdd_attacks import papers
from robustdd_attacks.common import ascent, direction
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings


class FGSM(Attack):
    """One gradient step of length eps from the image."""

    CITATION: ClassVar[str] = papers.FGSM

    routed = True
    stronger_than = ("noise",)

    @settings
    class Config:
        """Settings of `FGSM`: it has none."""

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`. Nothing is drawn from the generator."""
        images, threat = task.images, task.threat
        gradient, _, _ = ascent(task.model, images, task.labels, threat.targeted)
        # A NaN of a diverged model must not become a pixel.
        step = direction(gradient, threat.norm).nan_to_num(0.0)
        return AttackResult(images=threat.project(images + threat.eps * step, images))

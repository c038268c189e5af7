"""PGD: projected gradient ascent from a random point of the ball.

Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1:
x_{t+1} = Project(x_t + a * direction(grad)), the direction being the sign for Linf and the
normalised gradient for L2. The step a defaults to 2.5 * eps / steps, as in the authors' code.
Deviations: per example the best iterate of all restarts is returned (not the last), examples that
are broken leave before the next restart, and the gradient is that of a score with the direction of
the cross-entropy's, see `robustdd_attacks.common`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, ascend, in_ball, restarts
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings


class PGD(Attack):
    """Projected gradient ascent; Linf and L2, targeted or not."""

    CITATION: ClassVar[str] = papers.PGD

    routed = True
    stronger_than = ("fgsm",)

    @settings
    class Config:
        """Settings of `PGD`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
        """Gradient steps of each restart."""
        relative_step: Annotated[float, Field(gt=0, le=1e6)] = 2.5
        """The steps of a restart add up to this many eps; unused if `step_size` is given."""
        step_size: Annotated[float, Field(gt=0, le=10_000)] | None = None
        """Length of a step in pixel units, in the norm of the threat model."""
        random_start: bool = True
        """Start at a random point of the ball; otherwise at the image."""
        restarts: Annotated[int, Field(ge=1, le=10_000)] = 1
        """Runs from different random points; only examples still unbroken take part."""

        @model_validator(mode="after")
        def _restarts_differ(self) -> Self:
            if self.restarts > 1 and not self.random_start:
                raise ValueError("restarts differ only with random_start = true")
            return self

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        config, threat = self.config, task.threat
        step = config.step_size or config.relative_step * threat.eps / config.steps

        def climb(part: AttackTask, _places: Tensor, _turn: int) -> Best:
            x = part.images
            if config.random_start:
                x = in_ball(x, threat, part.generator)
            return ascend(part, x, config.steps, step)

        return AttackResult(images=restarts(task, config.restarts, climb))

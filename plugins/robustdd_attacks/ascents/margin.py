"""C&W in Linf: projected ascent on Carlini and Wagner's margin.

Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section V, f_6:
f(x') = max(z_y - max_{j != y} z_j, -kappa). What tables call "CW" in Linf is PGD that lowers this
f: so do Madry et al. 2018, section 5, and DD-RobustBench (kappa 50). It is this that is here. The
paper's own Linf attack (section VI-C, which lowers a bound on each pixel round by round and
penalises what is above it) is another one; `cw` is the paper's L2 attack.

The gradient is zero where the margin exceeds kappa: from there on nothing moves. Deviations: per
example the best iterate of all restarts is returned, and examples that are broken leave before the
next restart, as in `pgd`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, ascend, in_ball, margin, restarts
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings
from robustdd_bench.errors import UsageError


class CWLinf(Attack):
    """PGD on the margin of the logits; Linf, targeted or not."""

    CITATION: ClassVar[str] = papers.CW + papers.PGD

    routed = True
    norms = ("Linf",)

    @settings
    class Config:
        """Settings of `CWLinf`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
        """Gradient steps of each restart."""
        relative_step: Annotated[float, Field(gt=0, le=1e6)] = 2.5
        """The steps of a restart add up to this many eps; unused if `step_size` is given."""
        step_size: Annotated[float, Field(gt=0, le=1)] | None = None
        """Length of a step in pixel units."""
        kappa: Annotated[float, Field(ge=0, le=1e6)] = 50.0
        """The margin beyond which nothing is climbed, in logits."""
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
        """Adversarial examples; see `Attack.perturb`.

        Raises:
            UsageError: the norm is not Linf.
        """
        config, threat = self.config, task.threat
        if threat.norm not in self.norms:
            raise UsageError(f"CWLinf attacks in Linf only; choose cw for {threat.norm}")
        step = config.step_size or config.relative_step * threat.eps / config.steps

        def climb(part: AttackTask, _places: Tensor, _turn: int) -> Best:
            def loss(logits: Tensor) -> Tensor:
                return margin(logits, part.labels, threat.targeted).clamp_max(config.kappa)

            x = part.images
            if config.random_start:
                x = in_ball(x, threat, part.generator)
            return ascend(part, x, config.steps, step, loss=loss)

        return AttackResult(images=restarts(task, config.restarts, climb))

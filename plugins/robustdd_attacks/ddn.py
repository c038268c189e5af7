"""DDN: the decoupled direction and norm attack, which minimises the L2 distance.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger 2019, "Decoupling direction and norm for
efficient gradient-based L2 adversarial attacks and defenses", algorithm 1. The perturbation takes a
step of length a_k along the normalised gradient and is then scaled to the norm
e_k = (1 - g) e_{k-1} if the last point was adversarial, and (1 + g) e_{k-1} if not. a_k falls from
1 to .01 as a cosine.

As in the authors' code, the perturbation after clipping to [0,1] is what the next step starts from,
and a zero gradient is replaced by a random direction (here the same one throughout a call).
Deviations: the points are not rounded to 8 bits (quantisation is off); the last point is judged
too; the gradient is that of a score with the direction of the cross-entropy's, see
`robustdd_attacks.common`.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import ascent, direction, judge, on_sphere
from robustdd_attacks.minimum import Minimum, MinimumNorm, Nearest, distance
from robustdd_bench.attacks import Model, Norm
from robustdd_bench.config import settings
from robustdd_bench.seeds import ExampleGenerator


class DDN(MinimumNorm):
    """The least L2 distance, by a norm that shrinks on success and grows on failure."""

    CITATION: ClassVar[str] = papers.DDN

    routed = True
    norms = ("L2",)

    @settings
    class Config:
        """Settings of `DDN`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
        """Gradient steps."""
        init_norm: Annotated[float, Field(gt=0, le=10_000)] = 1.0
        """Norm of the first perturbation, in pixel units."""
        gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
        """By which share the norm shrinks or grows in a step; in (0, 1)."""
        first_step: Annotated[float, Field(gt=0, le=10_000)] = 1.0
        """Length of the first step; in pixel units."""
        last_step: Annotated[float, Field(gt=0, le=10_000)] = 0.01
        """Length that the steps fall to, as a cosine."""

        @model_validator(mode="after")
        def _steps_fall(self) -> Self:
            if self.last_step > self.first_step:
                raise ValueError("steps must fall: last_step <= first_step")
            return self

    def minimise(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        generator: ExampleGenerator,
        *,
        norm: Norm = "L2",
        targeted: bool = False,
    ) -> Minimum:
        """The nearest adversarial examples; see `MinimumNorm.minimise`."""
        self.check(norm, targeted)
        config = self.config
        nearest = Nearest(images)
        radius = torch.full_like(nearest.distance, config.init_norm)
        tiny = torch.finfo(images.dtype).tiny
        fallback = on_sphere(images, generator)
        x = images.detach()
        for k in range(config.steps):
            gradient, success, score = ascent(model, x, labels, targeted)
            success = success & ~score.isnan()
            nearest.offer(x, success, distance(x, images, "L2"))
            cosine = (1 + math.cos(math.pi * k / config.steps)) / 2
            step = config.last_step + (config.first_step - config.last_step) * cosine
            still = (gradient == 0).flatten(1).all(1)[:, None, None, None]
            delta = x - images + step * torch.where(still, fallback, direction(gradient, "L2"))
            radius = radius * torch.where(success, 1 - config.gamma, 1 + config.gamma)
            length = delta.flatten(1).norm(dim=1).clamp_min(tiny)
            x = (images + delta * (radius / length)[:, None, None, None]).clamp(0, 1)
        with torch.no_grad():
            success, score = judge(model(x), labels, targeted)
        nearest.offer(x, success & ~score.isnan(), distance(x, images, "L2"))
        return nearest.result()

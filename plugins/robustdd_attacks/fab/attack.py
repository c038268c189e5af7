"""FAB-T: step by step along the boundary to the nearest point on it, one target after another.

Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack"
(arXiv:1907.02044), algorithm 1, in the targeted form of AutoAttack (Croce and Hein 2020, "Reliable
evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"). With y
the class to leave and t a target, f(x) = z_t - z_y is linearised at the point x_i; d_1 and d_2 are
the smallest steps to the hyperplane f = 0 within [0,1], from x_i and from the image x_0:

    a = min(|d_1| / (|d_1| + |d_2|), alpha_max)
    x_{i+1} = clip((1 - a) (x_i + eta d_1) + a (x_0 + eta d_2))

A point that is misclassified is kept if it is the nearest so far, and the search goes back from it:
x_{i+1} = x_0 + beta (x_{i+1} - x_0). Targets are the likeliest wrong classes of the image, nine of
them or all. Later restarts begin at a random point within half of min(eps, nearest distance so
far).

It is an attack of minimum norm: `minimise` knows no eps and tries every target on every example.
`perturb` does, and stops with an example once it is broken within eps, as the authors' code does.
Under a targeted threat model the label is the only target, and the class to leave is the strongest
of the others at each point.

Deviations: as in the authors' code there is no final search on the last segment. The
projections are those of `robustdd_attacks.fab.projections`, exact by sorting where the authors
bisect. A gradient of zero moves nothing.

Shapes: B examples, M of them, C channels, H height, W width, K classes, P pixels.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import judge, offsets
from robustdd_attacks.fab.projections import to_hyperplane
from robustdd_attacks.minimum import Minimum, Nearest, distance, drawn_back
from robustdd_bench.attacks import Attack, AttackResult, AttackTask, Model, Norm, ThreatModel
from robustdd_bench.config import settings
from robustdd_bench.seeds import ExampleGenerator

_RADIUS: dict[Norm, float] = {"Linf": 0.3, "L2": 1.0}
"""Of restarts where no eps is known and nothing was found: the authors' eps."""
_LEAST = 1e-8
"""The least length of a step in the weights, as in the authors' code."""


class FABT(Attack):
    """The least distance in Linf or L2, along linearised boundaries; targeted or not."""

    CITATION: ClassVar[str] = papers.FAB + papers.APGD

    routed = True

    @settings
    class Config:
        """Settings of `FABT`; it costs `steps` gradients and twice the passes for each target."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
        """Steps towards each target and in each restart."""
        targets: Annotated[int, Field(ge=1, le=100_000)] = 9
        """Classes to try, or all the wrong ones if they are fewer."""
        restarts: Annotated[int, Field(ge=1, le=10_000)] = 1
        """Searches for each target; the first begins at the image."""
        alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
        """The largest weight of the step from the image."""
        eta: Annotated[float, Field(ge=1, le=100)] = 1.05
        """How far beyond the hyperplanes the steps go."""
        beta: Annotated[float, Field(gt=0, lt=1)] = 0.9
        """What is kept of the way from the image once a point is misclassified."""

    @classmethod
    def quick_config(cls) -> FABT.Config:
        """A run of seconds for `robustdd check-plugin`."""
        return cls.Config(steps=15, targets=3)

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
        """The nearest adversarial examples; see `minimum.MinimumNorm.minimise`."""
        task = AttackTask(
            model=model,
            images=images,
            labels=labels,
            threat=ThreatModel(norm, _RADIUS[norm], targeted),
            generator=generator,
        )
        return self._search(task, enough=None)

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        found = self._search(task, enough=task.threat.eps)
        return AttackResult(images=drawn_back(found, task.images, task.threat))

    def _search(self, task: AttackTask, enough: float | None) -> Minimum:
        """All targets and restarts; examples within `enough` leave between two of them."""
        config, images, targeted = self.config, task.images, task.threat.targeted
        norm = task.threat.norm
        nearest = Nearest(images)
        with torch.no_grad():
            logits = task.model(images)
            success, score = judge(logits, task.labels, targeted)
            nearest.offer(images, success & ~score.isnan(), torch.zeros_like(nearest.distance))
            wrong = logits.scatter(1, task.labels.unsqueeze(1), -torch.inf)
        # The label comes last. A stable sort, so that equal logits do not depend on the batch.
        ranks_BK = wrong.argsort(dim=1, descending=True, stable=True)
        classes = 1 if targeted else min(config.targets, wrong.shape[1] - 1)
        places = torch.arange(len(images), device=images.device)
        part = task
        for turn in range(classes * config.restarts):
            if turn and enough is not None:
                left = (nearest.distance[places] > enough).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                places, part = places[left], part.select(left)
            target, again = divmod(turn, config.restarts)
            x = part.images
            if again:
                # A draw of radius one, so that no number of an example depends on what it found.
                radius = nearest.distance[places].clamp_max(part.threat.eps) / 2
                draw = offsets(x, norm, 1.0, part.generator)
                x = (x + radius[:, None, None, None] * draw).clamp(0, 1)
            self._descend(part, x, ranks_BK[places, target], nearest, places)
        return nearest.result()

    def _descend(
        self, task: AttackTask, x: Tensor, targets: Tensor, nearest: Nearest, places: Tensor
    ) -> None:
        """One search from x towards the targets (M,); what it finds goes to `nearest`."""
        config, norm = self.config, task.threat.norm
        images, targeted = task.images.detach(), task.threat.targeted
        start_MP = images.flatten(1)
        for _ in range(config.steps):
            lead, slope = _linearised(task.model, x, task.labels, targets, targeted)
            w_MP, x_MP = slope.flatten(1), x.flatten(1)
            gap_M = -lead
            away_M = gap_M + (w_MP * (x_MP - start_MP)).sum(1)
            near = to_hyperplane(x_MP, w_MP, gap_M, norm).view_as(x)
            far = to_hyperplane(start_MP, w_MP, away_M, norm).view_as(x)
            ahead, behind = (
                distance(step, torch.zeros_like(step), norm).clamp_min(_LEAST)
                for step in (near, far)
            )
            a = (ahead / (ahead + behind)).clamp_max(config.alpha_max)[:, None, None, None]
            moved = (1 - a) * (x + config.eta * near) + a * (images + config.eta * far)
            # A flat or broken model gives no direction; its examples stay where they are.
            x = torch.where(moved.isfinite(), moved, x).clamp(0, 1)
            with torch.no_grad():
                success, score = judge(task.model(x), task.labels, targeted)
            success = success & ~score.isnan()
            nearest.offer(x, success, distance(x, images, norm), places)
            back = images + config.beta * (x - images)
            x = torch.where(success[:, None, None, None], back, x)


def _linearised(
    model: Model, x_MCHW: Tensor, labels_M: Tensor, targets_M: Tensor, targeted: bool
) -> tuple[Tensor, Tensor]:
    """By how much the target leads over the class to leave (M,), and its gradient (M,C,H,W)."""
    with torch.enable_grad():
        x_MCHW = x_MCHW.detach().requires_grad_()
        logits = model(x_MCHW)
        own = logits.gather(1, labels_M.unsqueeze(1)).squeeze(1)
        if targeted:
            lead = own - logits.scatter(1, labels_M.unsqueeze(1), -torch.inf).amax(1)
        else:
            lead = logits.gather(1, targets_M.unsqueeze(1)).squeeze(1) - own
        (slope,) = torch.autograd.grad(lead.sum(), x_MCHW)
    return lead.detach(), slope

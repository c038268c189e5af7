"""APGD: projected gradient ascent with momentum that chooses its own step size.

Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks" (arXiv:2003.01690), algorithm 1 with the conditions 1 and 2 of section 3.1:

    z = P(x_k + step * direction(grad));  x_{k+1} = P(x_k + .75 (z - x_k) + .25 (x_k - x_{k-1}))

The step starts at 2 eps. At a checkpoint w_j it is halved, and the search goes on from the best
point so far, if the loss rose in fewer than .75 of the steps since w_{j-1} (1), or if neither the
step nor the best loss has changed since then (2). Checkpoints depend on the counter alone, and each
example has its own step, so nothing waits for the device.

The ratio losses (DLR, equations 6 and 7 of the paper; z_p1 >= z_p2 >= ... are the sorted logits):

    untargeted: (max_{j != y} z_j - z_y) / (z_p1 - z_p3)
    towards t:  (z_t - z_y) / (z_p1 - (z_p3 + z_p4) / 2)

With fewer classes than that needs (3 and 4) the divisor is left out. Neither the directions nor the
comparisons of losses see a factor that is common to all points, so the difference of logits
alone is as blind to the scale of the logits as the ratio is.

Deviations. The start is uniform in the ball. APGD-CE climbs the score of
`robustdd_attacks.common`, of which the cross-entropy is a strictly rising function: gradients have
the same direction and comparisons the same outcome, without the saturation in float32. What is
returned is the best point by success first and that score second, whatever loss led there.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, Loss, direction, in_ball, judge, margin, restarts
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings

MOMENTUM = 0.75  # the paper's alpha
RISES = 0.75  # the paper's rho


def checkpoints(steps: int) -> list[int]:
    """The iterations w_1 < w_2 < ... < `steps` at which the step size is looked at.

    w_j is p_j * steps rounded up; p_0 = 0, p_1 = .22 and
    p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06).
    """
    before, p = 0, 22  # per cent, as integers: .41 * 100 must not be rounded up to 42
    found = set()
    while p <= 100:
        found.add(-(-p * steps // 100))
        before, p = p, p + max(p - before - 3, 6)
    return sorted(mark for mark in found if mark < steps)


def dlr(logits_BK: Tensor, labels_B: Tensor, targeted: bool) -> Tensor:
    """The untargeted ratio loss (B,); if `targeted`, that towards the labels.

    Towards a label, the class to leave is the strongest of the others.
    """
    return margin(logits_BK, labels_B, targeted) / _spread(logits_BK, targeted)


def dlr_towards(logits_BK: Tensor, labels_B: Tensor, targets_B: Tensor) -> Tensor:
    """The ratio loss (B,) from the labels towards the targets."""
    ends = logits_BK.gather(1, torch.stack([targets_B, labels_B], 1))
    return (ends[:, 0] - ends[:, 1]) / _spread(logits_BK, targeted=True)


def _spread(logits_BK: Tensor, targeted: bool) -> Tensor:
    """The divisor of the ratio losses."""
    needed = 4 if targeted else 3
    if logits_BK.shape[1] < needed:
        return torch.ones_like(logits_BK[:, 0])
    top = logits_BK.topk(needed, dim=1).values
    return top[:, 0] - top[:, 2:].mean(1) + 1e-12


@dataclass(frozen=True, slots=True)
class _Points:
    """A point of each example, with the loss and its gradient there."""

    x: Tensor
    gradient: Tensor
    value: Tensor

    def where(self, take_B: Tensor, other: _Points) -> _Points:
        """These points where `take_B`, the others elsewhere."""
        take = take_B.view(-1, 1, 1, 1)
        return _Points(
            torch.where(take, self.x, other.x),
            torch.where(take, self.gradient, other.gradient),
            torch.where(take_B, self.value, other.value),
        )


def auto_pgd(task: AttackTask, steps: int, loss: Loss | None = None) -> Best:
    """One run from a random point; the device never waits for the host in it.

    Args:
        task: what to attack.
        steps: gradient steps.
        loss: what to climb; None: the score of `judge`.
    """
    images, threat = task.images, task.threat
    best = Best(images)

    def look(x_BCHW: Tensor) -> _Points:
        with torch.enable_grad():
            x_BCHW = x_BCHW.detach().requires_grad_()
            logits = task.model(x_BCHW)
            success, score = judge(logits, task.labels, threat.targeted)
            value = score if loss is None else loss(logits)
            (gradient,) = torch.autograd.grad(value.sum(), x_BCHW)
        x_BCHW = x_BCHW.detach()
        best.offer(x_BCHW, success, score.detach())
        return _Points(x_BCHW, gradient, value.detach())

    def advance(points: _Points, step_B111: Tensor) -> Tensor:
        moved = points.x + step_B111 * direction(points.gradient, threat.norm)
        return threat.project(moved, images)

    before = look(in_ball(images, threat, task.generator))
    step = torch.full_like(before.value, 2 * threat.eps).view(-1, 1, 1, 1)
    now = look(advance(before, step))
    rose = now.value > before.value
    peak = now.where(rose, before)
    marks, last = checkpoints(steps), 0
    rises, kept, height = rose.long(), torch.ones_like(rose), before.value  # since `last`
    for k in range(1, steps):
        ahead = MOMENTUM * (advance(now, step) - now.x) + (1 - MOMENTUM) * (now.x - before.x)
        after = look(threat.project(now.x + ahead, images))
        higher = after.where(after.value > peak.value, peak)
        if k in marks:
            stuck = (rises < RISES * (k - last)) | (kept & (peak.value <= height))
            step = torch.where(stuck.view_as(step), step / 2, step)
            after = higher.where(stuck, after)
            rises, kept, height, last = torch.zeros_like(rises), ~stuck, peak.value, k
        rises = rises + (after.value > now.value)
        before, now, peak = now, after, higher
    return best


@settings
class APGDConfig:
    """Settings of `APGDCE` and `APGDDLR`."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Gradient steps of each restart."""
    restarts: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Runs from different random points; only examples still unbroken take part."""


class _APGD(Attack):
    """APGD on a loss, with restarts."""

    CITATION: ClassVar[str] = papers.APGD

    routed = True
    Config = APGDConfig

    @classmethod
    def quick_config(cls) -> APGDConfig:
        """A run of seconds for `robustdd check-plugin`."""
        return APGDConfig(steps=10)

    @abc.abstractmethod
    def _loss(self, part: AttackTask) -> Loss | None:
        """What is climbed, a function of the logits; None: the cross-entropy."""

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""

        def climb(part: AttackTask, _places: Tensor, _turn: int) -> Best:
            return auto_pgd(part, self.config.steps, self._loss(part))

        return AttackResult(images=restarts(task, self.config.restarts, climb))


class APGDCE(_APGD):
    """APGD on the cross-entropy; Linf and L2, targeted or not."""

    stronger_than = ("pgd",)
    weaker_than = ("autoattack",)

    def _loss(self, part: AttackTask) -> None:
        return None


class APGDDLR(_APGD):
    """APGD on the ratio loss; Linf and L2, targeted or not."""

    def _loss(self, part: AttackTask) -> Loss:
        return lambda logits: dlr(logits, part.labels, part.threat.targeted)


class APGDT(Attack):
    """APGD on the ratio loss towards one class after another, the likeliest first; Linf and L2.

    Under a targeted threat model the label is the only class to reach.
    """

    CITATION: ClassVar[str] = papers.APGD

    routed = True

    @settings
    class Config:
        """Settings of `APGDT`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
        """Gradient steps towards each class."""
        targets: Annotated[int, Field(ge=1, le=100_000)] = 9
        """Classes to try, or all the wrong ones if they are fewer; only examples still unbroken
        take part in the next."""

    @classmethod
    def quick_config(cls) -> APGDT.Config:
        """A run of seconds for `robustdd check-plugin`."""
        return cls.Config(steps=10, targets=3)

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        steps, labels = self.config.steps, task.labels
        if task.threat.targeted:
            best = auto_pgd(task, steps, lambda logits: dlr(logits, labels, True))
            return AttackResult(images=best.images)
        with torch.no_grad():
            wrong = task.model(task.images).scatter(1, labels.unsqueeze(1), -torch.inf)
        # The label comes last. A stable sort, so that equal logits do not depend on the batch.
        ranks_BK = wrong.argsort(dim=1, descending=True, stable=True)

        def climb(part: AttackTask, places: Tensor, turn: int) -> Best:
            target = ranks_BK[places, turn]
            return auto_pgd(part, steps, lambda logits: dlr_towards(logits, part.labels, target))

        classes = min(self.config.targets, wrong.shape[1] - 1)
        return AttackResult(images=restarts(task, classes, climb))

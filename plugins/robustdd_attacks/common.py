"""What the attacks share: score, directions, random points, the best so far, ascent and restarts.

Shapes: B examples, C channels, H height, W width, K classes.

The cross-entropy of class y is softplus(s) with s = logsumexp_{j != y} z_j - z_y, and softplus
rises strictly, so s and the cross-entropy have gradients of the same direction. Steps that use
nothing but the direction (its sign, or the normalised gradient) are therefore the same for both.
We climb s, because in float32 the gradient of the cross-entropy loses the part of z_y once the
margin exceeds 17, and is exactly zero beyond 104 (Carlini and Wagner 2017, section VI, on such
masking). This is a deviation in rounding only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustdd_bench.attacks import AttackTask, Model, Norm, ThreatModel
from robustdd_bench.seeds import ExampleGenerator


def judge(logits_BK: Tensor, labels_B: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """Whether each example reaches the attack's aim, and how near it is.

    Args:
        logits_BK: the model's outputs.
        labels_B: classes to leave, or to reach if `targeted`.
        targeted: which of the two.

    Returns:
        Success (B,) bool, and a score (B,) that an attack makes larger, differentiable in the
        logits.
    """
    classes = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    own = labels_B.unsqueeze(1) == classes
    others = logits_BK.masked_fill(own, -torch.inf).logsumexp(1)
    score = others - logits_BK.gather(1, labels_B.unsqueeze(1)).squeeze(1)
    hit = logits_BK.argmax(1) == labels_B
    return (hit, -score) if targeted else (~hit, score)


Loss = Callable[[Tensor], Tensor]
"""Logits (B,K) to what is to be made large (B,)."""


def margin(logits_BK: Tensor, labels_B: Tensor, targeted: bool) -> Tensor:
    """By how much the best other class leads over the label (B,); if `targeted`, the reverse."""
    own = labels_B.unsqueeze(1)
    rival = logits_BK.scatter(1, own, -torch.inf).amax(1)
    ahead = rival - logits_BK.gather(1, own).squeeze(1)
    return -ahead if targeted else ahead


def ascent(
    model: Model, x_BCHW: Tensor, labels_B: Tensor, targeted: bool, loss: Loss | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the score in the pixels (B,C,H,W), success (B,) and score (B,), all detached.

    With a `loss` the gradient is that of the loss; success and score are the same.
    """
    with torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_()
        logits = model(x_BCHW)
        success, score = judge(logits, labels_B, targeted)
        value = score if loss is None else loss(logits)
        (gradient,) = torch.autograd.grad(value.sum(), x_BCHW)
    return gradient, success, score.detach()


def direction(gradient_BCHW: Tensor, norm: Norm) -> Tensor:
    """The steepest direction of length one in `norm`; zero where the gradient is zero."""
    if norm == "Linf":
        return torch.sign(gradient_BCHW)
    flat = gradient_BCHW.flatten(1)
    tiny = torch.finfo(flat.dtype).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)  # squares must not underflow
    unit: Tensor = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(tiny)
    return unit.view_as(gradient_BCHW)


def on_sphere(images_BCHW: Tensor, generator: ExampleGenerator) -> Tensor:
    """Vectors of L2 length one, in every direction alike; (B,C,H,W)."""
    return direction(generator.normal(images_BCHW.shape[1:], images_BCHW.dtype), "L2")


def offsets(images_BCHW: Tensor, norm: Norm, radius: float, generator: ExampleGenerator) -> Tensor:
    """Vectors drawn uniformly from the ball of a radius, in pixel units; (B,C,H,W)."""
    shape, dtype = images_BCHW.shape[1:], images_BCHW.dtype
    if norm == "Linf":
        return generator.uniform(shape, -radius, radius, dtype)
    # By logarithms: pow rounds otherwise at the end of a batch than inside it.
    share = (generator.uniform((1, 1, 1), dtype=dtype).log() / shape.numel()).exp()
    return radius * share * on_sphere(images_BCHW, generator)


def in_ball(images_BCHW: Tensor, threat: ThreatModel, generator: ExampleGenerator) -> Tensor:
    """Points drawn uniformly from the ball of the threat model, then clipped to [0,1]."""
    delta = offsets(images_BCHW, threat.norm, threat.eps, generator)
    return threat.project(images_BCHW + delta, images_BCHW)


class Best:
    """Per example the best candidate so far: successful ones first, then by score.

    It starts with the images themselves, at the lowest score. Nothing here waits for the device. A
    candidate whose score is NaN is never taken.
    """

    def __init__(self, images_BCHW: Tensor) -> None:
        self.images = images_BCHW.detach().clone()
        self.success = torch.zeros(len(images_BCHW), dtype=torch.bool, device=images_BCHW.device)
        self.score = torch.full_like(self.success, -torch.inf, dtype=images_BCHW.dtype)

    def offer(self, candidates_BCHW: Tensor, success_B: Tensor, score_B: Tensor) -> None:
        """Take each candidate that is better than what is held."""
        better = _better(success_B, score_B, self.success, self.score)
        self.images = torch.where(better[:, None, None, None], candidates_BCHW, self.images)
        self.success = torch.where(better, success_B, self.success)
        self.score = torch.where(better, score_B, self.score)

    def at(self, places_M: Tensor) -> Best:
        """What is held for some of the examples."""
        part = Best.__new__(Best)
        part.images = self.images[places_M]
        part.success, part.score = self.success[places_M], self.score[places_M]
        return part

    def merge(self, places_M: Tensor, other: Best) -> None:
        """Take what is better in `other`, whose M examples are those at `places_M` here."""
        held = self.at(places_M)
        held.offer(other.images, other.success, other.score)
        self.images = self.images.index_copy(0, places_M, held.images)
        self.success = self.success.index_copy(0, places_M, held.success)
        self.score = self.score.index_copy(0, places_M, held.score)


def _better(success: Tensor, score: Tensor, held_success: Tensor, held_score: Tensor) -> Tensor:
    return ~score.isnan() & (
        (success & ~held_success) | ((success == held_success) & (score > held_score))
    )


def ascend(
    task: AttackTask,
    start_BCHW: Tensor,
    steps: int,
    step: float,
    smooth: Callable[[Tensor], Tensor] = torch.Tensor.detach,
    loss: Loss | None = None,
) -> Best:
    """Projected steps of one length, in the directions of the gradients; the best point visited.

    The device never waits for the host in it.

    Args:
        task: what to attack.
        start_BCHW: the first point.
        steps: how many steps to take.
        step: length of each, in the norm of the threat model.
        smooth: makes of each gradient (B,C,H,W) in turn what the step follows.
        loss: what the gradients are of; None: the score of `judge`.
    """
    model, threat, targeted = task.model, task.threat, task.threat.targeted
    best, x = Best(task.images), start_BCHW
    for _ in range(steps):
        gradient, success, score = ascent(model, x, task.labels, targeted, loss)
        best.offer(x, success, score)
        move = step * direction(smooth(gradient), threat.norm)
        x = threat.project(x + move, task.images)
    with torch.no_grad():
        best.offer(x, *judge(model(x), task.labels, targeted))
    return best


def restarts(
    task: AttackTask, count: int, climb: Callable[[AttackTask, Tensor, int], Best]
) -> Tensor:
    """The best of several rounds; only examples that are still unbroken take part in the next.

    Args:
        task: what to attack.
        count: how many rounds at most, at least 1.
        climb: one round: of the task of the M rows left, their places (M,) in `task` and the
            number of the round. It must make the same number of draws for each example
            whatever the batch, as the next round goes on with the same streams.

    Returns:
        (B,C,H,W). The device waits for the host once before each round but the first.
    """
    places = torch.arange(len(task.images), device=task.images.device)
    best = climb(task, places, 0)
    for turn in range(1, count):
        left = (~best.success[places]).nonzero().squeeze(1)
        if len(left) == 0:
            break
        places, task = places[left], task.select(left)
        best.merge(places, climb(task, places, turn))
    return best.images

"""What the attacks share: the score they climb, directions, random points, the best so far.

Shapes: B examples, C channels, H height, W width, K classes.

The cross-entropy of class y is softplus(s) with s = logsumexp_{j != y} z_j - z_y, and softplus
rises strictly, so s and the cross-entropy have gradients of the same direction. Steps that use
nothing but the direction (its sign, or the normalised gradient) are therefore the same for both.
We climb s, because in float32 the gradient of the cross-entropy loses the part of z_y once the
margin exceeds 17, and is exactly zero beyond 104 (Carlini and Wagner 2017, section VI, on such
masking). This is a deviation in rounding only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustdd_bench.attacks import Model, Norm, ThreatModel
from robustdd_bench.toolkit.randomness import ExampleGenerator


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


def ascent(
    model: Model, x_BCHW: Tensor, labels_B: Tensor, targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the score in the pixels (B,C,H,W), success (B,) and score (B,), all detached."""
    with torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_()
        success, score = judge(model(x_BCHW), labels_B, targeted)
        (gradient,) = torch.autograd.grad(score.sum(), x_BCHW)
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


def in_ball(images_BCHW: Tensor, threat: ThreatModel, generator: ExampleGenerator) -> Tensor:
    """Points drawn uniformly from the ball of the threat model, then clipped to [0,1]."""
    shape, dtype = images_BCHW.shape[1:], images_BCHW.dtype
    if threat.norm == "Linf":
        delta = generator.uniform(shape, -threat.eps, threat.eps, dtype)
    else:
        radius = generator.uniform((1, 1, 1), dtype=dtype) ** (1 / shape.numel())
        delta = threat.eps * radius * on_sphere(images_BCHW, generator)
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

    def merge(self, places_M: Tensor, other: Best) -> None:
        """Take what is better in `other`, whose M examples are those at `places_M` here."""
        held = Best.__new__(Best)
        held.images = self.images[places_M]
        held.success, held.score = self.success[places_M], self.score[places_M]
        held.offer(other.images, other.success, other.score)
        self.images = self.images.index_copy(0, places_M, held.images)
        self.success = self.success.index_copy(0, places_M, held.success)
        self.score = self.score.index_copy(0, places_M, held.score)


def _better(success: Tensor, score: Tensor, held_success: Tensor, held_score: Tensor) -> Tensor:
    return ~score.isnan() & (
        (success & ~held_success) | ((success == held_success) & (score > held_score))
    )

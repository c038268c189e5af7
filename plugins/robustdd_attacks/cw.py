"""C&W: Carlini and Wagner's attack, which minimises the L2 distance.

Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", sections V and
VI-A: Adam on |x' - x|_2^2 + c f(x') with their f_6, f(x') = max(z_y - max_{j != y} z_j + kappa, 0)
(the difference with the other sign if targeted), and a binary search for the least c that succeeds,
for each example.

Box: the paper optimises w with x' = (tanh(w) + 1) / 2. The derivative of x' is 2 x' (1 - x'), zero
at 0 and 1, so pixels that are exactly black or white (most of a digit) never move, or creep where
the image is squeezed a little first. Here Adam works on the pixels and each step is clipped to
[0,1] (the projected gradient descent of the paper's section V-B): every pixel moves at the same
speed, and 0 and 1 are reached exactly.
Other deviations, all for accuracy in few steps: the length of Adam's steps falls to a hundredth as
a cosine, since at a constant length the point circles the optimum at a distance that counts; a
value of c succeeds if a point of the last tenth of its run is adversarial, since Adam's first steps
can cross the boundary with any c (the nearest point is taken from all steps); nothing ends early.

Shapes: B examples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.minimum import Minimum, MinimumNorm, Nearest
from robustdd_bench.attacks import Model, Norm
from robustdd_bench.config import settings
from robustdd_bench.seeds import ExampleGenerator

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults
_LAST_STEP = 0.01  # share of the learning rate that the last step has
_LAST_PART = 0.9  # what comes after this share of the steps decides whether c succeeds


class CW(MinimumNorm):
    """The least L2 distance, by Adam on distance and margin; targeted or not."""

    CITATION: ClassVar[str] = papers.CW

    routed = True
    norms = ("L2",)

    @settings
    class Config:
        """Settings of `CW`; an attack costs `steps` x `binary_steps` gradients."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
        """Adam's steps for each c. The paper takes 10 000 of constant length."""
        binary_steps: Annotated[int, Field(ge=1, le=1000)] = 9
        """How many values of c are tried."""
        initial_c: Annotated[float, Field(gt=0, le=1e10)] = 1e-3
        """The first c; it grows tenfold until one succeeds."""
        learning_rate: Annotated[float, Field(gt=0, le=1000)] = 0.01
        """Adam's at the first step, in pixel units."""
        kappa: Annotated[float, Field(ge=0, le=1e6)] = 0.0
        """By how much the margin has to be crossed, in logits."""

    @classmethod
    def quick_config(cls) -> CW.Config:
        """Few steps, for `robustdd check-plugin`."""
        return cls.Config(steps=50, binary_steps=5, initial_c=0.01)

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
        """The nearest adversarial examples; see `MinimumNorm.minimise`. Nothing is drawn."""
        self.check(norm, targeted)
        nearest = Nearest(images)
        c_B = torch.full_like(nearest.distance, self.config.initial_c)
        low_B, high_B = torch.zeros_like(c_B), torch.full_like(c_B, torch.inf)
        for _ in range(self.config.binary_steps):
            success_B = self._descend(model, images.detach(), labels, targeted, c_B, nearest)
            high_B = torch.where(success_B, torch.minimum(high_B, c_B), high_B)
            low_B = torch.where(success_B, low_B, torch.maximum(low_B, c_B))
            c_B = torch.where(high_B.isfinite(), (low_B + high_B) / 2, 10 * c_B)
        return nearest.result()

    def _descend(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        targeted: bool,
        c_B: Tensor,
        nearest: Nearest,
    ) -> Tensor:
        """Adam from the images at one c for each; whether each c succeeds (B,) bool."""
        config = self.config
        succeeds_B = torch.zeros_like(labels, dtype=torch.bool)
        x, mean, square = images, torch.zeros_like(images), torch.zeros_like(images)
        for k in range(config.steps):
            gradient, success_B, distance_B = self._objective(
                model, x, images, labels, targeted, c_B
            )
            nearest.offer(x, success_B, distance_B)
            if k + 1 > _LAST_PART * config.steps:
                succeeds_B = succeeds_B | success_B
            mean = _BETA_1 * mean + (1 - _BETA_1) * gradient
            square = _BETA_2 * square + (1 - _BETA_2) * gradient.square()
            cosine = (1 + math.cos(math.pi * k / config.steps)) / 2
            rate = config.learning_rate * (_LAST_STEP + (1 - _LAST_STEP) * cosine)
            root = (square / (1 - _BETA_2 ** (k + 1))).sqrt()
            x = (x - rate / (1 - _BETA_1 ** (k + 1)) * mean / (root + _EPSILON)).clamp(0, 1)
        return succeeds_B

    def _objective(
        self, model: Model, x: Tensor, images: Tensor, labels: Tensor, targeted: bool, c_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B,C,H,W), success (B,) and distance (B,), all detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = model(x)
            own = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
            others = logits.masked_fill(own, -torch.inf).amax(1)
            lead = logits.gather(1, labels.unsqueeze(1)).squeeze(1) - others
            lead = -lead if targeted else lead
            squared = (x - images).flatten(1).square().sum(1)
            loss = squared + c_B * (lead + self.config.kappa).clamp_min(0)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        hit = logits.detach().argmax(1) == labels
        # A lead that is NaN is not below -kappa, so a model that has diverged is never fooled.
        success = (hit if targeted else ~hit) & (lead.detach() <= -self.config.kappa)
        return gradient, success, squared.detach().sqrt()

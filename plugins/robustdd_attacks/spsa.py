"""SPSA: ascent along gradients that are estimated from pairs of outputs.

Uesato, O'Donoghue, Kohli, van den Oord 2018, "Adversarial risk and the dangers of evaluating
against weak attacks" (arXiv:1802.05666), algorithm 1 (Spall 1992). With independent signs D_i,

    grad = mean_i (J(x + d D_i) - J(x - d D_i)) / (2 d) D_i,   J = max_{j != y} z_j - z_y

(under a targeted threat model the lead of the target), Adam on x along grad, and a projection after
each step. It sees nothing but the logits. The probes x +- d D_i are not clipped to [0,1], as in the
authors' code.

Deviations. The rate of Adam is in eps (`rate`; the paper's .01 is .32 of its eps of 8/255), so that
one setting suits every eps. The paper has no L2: there a step of that length goes along Adam's mean
of the gradients, since its division by pixel would turn it away from the steepest direction. Each
point is judged, which costs one more query, and the best one is returned. Examples that are broken
leave from time to time. Signs differ between examples.

Shapes: B examples, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, direction, judge, margin
from robustdd_bench.attacks import Attack, AttackResult, AttackTask, Model, rows
from robustdd_bench.config import settings
from robustdd_bench.seeds import ExampleGenerator

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults


class SPSA(Attack):
    """Steps along estimated gradients; Linf and L2, targeted or not."""

    CITATION: ClassVar[str] = papers.SPSA

    routed = True
    white_box = False

    @settings
    class Config:
        """Settings of `SPSA`; it makes `queries` // (2 `pairs` + 1) steps."""

        queries: Annotated[int, Field(ge=1, le=100_000_000)] = 5000
        """Images passed through the model for each example, at most."""
        pairs: Annotated[int, Field(ge=1, le=1_000_000)] = 64
        """Pairs of probes for each estimate."""
        delta: Annotated[float, Field(gt=0, le=10)] = 0.01
        """How far a probe is from the point in each pixel."""
        rate: Annotated[float, Field(gt=0, le=1000)] = 0.3
        """Length of a step in eps: how far a pixel moves (Linf), or all together (L2)."""
        check_every: Annotated[int, Field(ge=0, le=1_000_000)] = 5
        """After how many steps broken examples leave, the only time that the host waits for the
        device; 0: never."""

        @model_validator(mode="after")
        def _one_step(self) -> Self:
            if self.queries < 2 * self.pairs + 2:
                raise ValueError(
                    f"queries must be at least 2 pairs + 2 = {2 * self.pairs + 2}, or no step is "
                    "made"
                )
            return self

    @classmethod
    def quick_config(cls) -> SPSA.Config:
        """A run of seconds for `robustdd check-plugin`."""
        return cls.Config(queries=500, pairs=16)

    @torch.no_grad()
    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        config, images = self.config, task.images
        # One query judges the image itself, and one each point after it.
        steps = (config.queries - 1) // (2 * config.pairs + 1)
        rate = config.rate * task.threat.eps
        best, places = Best(images), torch.arange(len(images), device=images.device)
        # How far a stream moves depends on when its example leaves; no other draw follows.
        streams = ExampleGenerator(task.generator.bits(()), task.generator.index)
        part, held = dataclasses.replace(task, generator=streams), best
        x, both = images.detach(), _both(task.model, len(images), images.device)
        held.offer(x, *judge(task.model(x), task.labels, task.threat.targeted))
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(1, steps + 1):
            gradient = estimate(both, part, x, config.pairs, config.delta)
            mean = _BETA_1 * mean + (1 - _BETA_1) * gradient
            square = _BETA_2 * square + (1 - _BETA_2) * gradient.square()
            if part.threat.norm == "Linf":
                root = (square / (1 - _BETA_2**step)).sqrt()
                move = mean / (1 - _BETA_1**step) / (root + _EPSILON)
            else:
                move = direction(mean, "L2")
            x = part.threat.project(x + rate * move.nan_to_num(0.0), part.images)
            held.offer(x, *judge(part.model(x), part.labels, part.threat.targeted))
            if config.check_every and step % config.check_every == 0 and step < steps:
                left = (~held.success).nonzero().squeeze(1)
                if len(left) < len(x):
                    best.merge(places, held)
                    places, part, held = places[left], part.select(left), held.at(left)
                    x, mean, square = x[left], mean[left], square[left]
                    both = _both(part.model, len(left), x.device)
                if len(left) == 0:
                    break
        best.merge(places, held)
        return AttackResult(images=best.images)


def _both(model: Model, count: int, device: torch.device) -> Model:
    """The model for two batches of `count` rows, one after the other."""
    return rows(model, torch.arange(count, device=device).repeat(2))


def estimate(both: Model, task: AttackTask, x: Tensor, pairs: int, delta: float) -> Tensor:
    """The estimated gradient of the margin at x (B,C,H,W), from 2 `pairs` outputs.

    Args:
        both: answers 2B rows, those of the task twice.
        task: labels, threat model and random streams.
        x: where it is estimated.
        pairs: how many; each takes one draw.
        delta: how far the probes are away in each pixel.
    """
    total = torch.zeros_like(x)
    labels = task.labels.repeat(2)
    for _ in range(pairs):
        signs = torch.where(task.generator.bits(x.shape[1:]) < 0, -1.0, 1.0).to(x.dtype)
        logits = both(torch.cat([x + delta * signs, x - delta * signs]))
        above, below = margin(logits, labels, task.threat.targeted).chunk(2)
        total = total + ((above - below) / (2 * delta))[:, None, None, None] * signs
    return total / pairs

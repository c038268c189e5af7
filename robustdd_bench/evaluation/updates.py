"""How the weights of a student move: SGD with momentum, or AdamW, on tensors that stay in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.toolkit.fast.capture import Inputs

_BETAS = (0.9, 0.999)
_EPS = 1e-8


def rate_at(spec: StudentSpec, rate: float, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        spec: the recipe.
        rate: the learning rate at the start.
        step: 0 for the first.
        steps: how many there are.
    """
    if spec.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / steps))
    return rate if step < int(steps * spec.drop_at) else rate * spec.drop_factor


class Update:
    """The rule of one student's recipe, as torch's optimisers compute it.

    Args:
        spec: the recipe.
        weights: what is moved, in place.
        inputs: tensors that stay where they are.
    """

    def __init__(self, spec: StudentSpec, weights: Sequence[Tensor], inputs: Inputs) -> None:
        self._spec, self._weights, self._inputs = spec, list(weights), inputs
        adam = spec.optimiser == "adamw"
        kept = adam or bool(spec.momentum)
        self._first = [torch.zeros_like(p) for p in weights] if kept else []
        self._second = [torch.zeros_like(p) for p in weights] if adam else []
        self._steps = 0

    @property
    def state(self) -> list[Tensor]:
        """What a step changes beside the weights."""
        return [*self._first, *self._second]

    def ready(self, rate: float) -> tuple[object, ...]:
        """Make the next step's factors known; call it once before each step.

        Returns:
            What the step depends on and no tensor holds: part of the key of a captured step.
        """
        self._steps += 1
        self._rate = rate
        if self._spec.optimiser == "sgd" and self._spec.schedule == "drop":
            return (rate,)
        one, two = (1 - beta**self._steps for beta in _BETAS)
        # The rate, and AdamW's corrections for the moments' start at zero.
        self._factors = self._inputs.put("factors", torch.tensor([rate, rate / one, two**0.5]))
        return ()

    def apply(self, gradients: Sequence[Tensor | None]) -> None:
        """Move the weights; one without a gradient stays where it is."""
        for i, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            if gradient is None:
                continue
            if self._spec.optimiser == "adamw":
                self._adamw(i, weight, gradient)
            else:
                self._sgd(i, weight, gradient)

    def _sgd(self, i: int, weight: Tensor, gradient: Tensor) -> None:
        spec, move = self._spec, gradient
        if spec.weight_decay:
            move = move.add(weight, alpha=spec.weight_decay)
        if spec.momentum:
            move = self._first[i].mul_(spec.momentum).add_(move)
        if spec.schedule == "drop":
            weight.add_(move, alpha=-self._rate)
        else:
            weight.sub_(move * self._factors[0].to(weight.dtype))

    def _adamw(self, i: int, weight: Tensor, gradient: Tensor) -> None:
        rate, corrected, root = self._factors.to(weight.dtype)
        weight.mul_(1 - rate * self._spec.weight_decay)
        first, second = self._first[i], self._second[i]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        weight.sub_(corrected * first / (second.sqrt() / root + _EPS))

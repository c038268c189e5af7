"""Floating-point operations of a teacher's training and of what is made with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.toolkit.operations import Facts, count_operations
from robustdd_bench.toolkit.teachers.config import TeacherRecipe
from robustdd_bench.toolkit.teachers.penalties import cure_penalty, difference_penalty

_COUNT = 2


class TeacherOperations:
    """Operations with one teacher, counted from its program on two images.

    Args:
        facts: of the run.
        recipe: of the teacher.

    Raises:
        ValueError: the facts hold no way to build a network.
    """

    def __init__(self, facts: Facts, recipe: TeacherRecipe) -> None:
        if facts.build is None:
            raise ValueError("these facts hold no way to build a teacher")
        self._facts, self._recipe = facts, recipe
        self._body = facts.build(recipe.network, recipe.options)
        self._images = torch.zeros(_COUNT, *facts.shape)
        self._labels = torch.arange(_COUNT) % facts.classes

    def _count(self, work: Callable[[], object]) -> float:
        return count_operations(work) / _COUNT

    def training(self) -> float:
        """Of the whole training."""
        recipe, body = self._recipe, self._body.train()
        weights = list(body.parameters())

        def loss() -> Tensor:
            found = F.cross_entropy(body(self._images), self._labels)
            if recipe.penalty in ("cure", "difference"):
                penalty = cure_penalty if recipe.penalty == "cure" else difference_penalty
                body.eval()
                found = found + penalty(
                    body, self._images, self._labels, weight=recipe.weight, radius=recipe.radius
                )
                body.train()
            return found

        step = self._count(lambda: torch.autograd.grad(loss(), weights))
        if recipe.penalty in ("pgd", "fast"):
            step += recipe.attack_steps * self.pixels()
        return recipe.epochs * self._facts.train * step

    def pixels(self) -> float:
        """The gradient in the pixels of one image, forward pass included."""
        body, leaf = _frozen(self._body), self._images.clone().requires_grad_()
        found = self._count(
            lambda: torch.autograd.grad(F.cross_entropy(body(leaf), self._labels), leaf)
        )
        body.requires_grad_(True)
        return found

    def forward(self) -> float:
        """The forward pass of one image."""
        with torch.no_grad():
            return self._count(lambda: self._body.eval()(self._images))


def _frozen(body: nn.Module) -> nn.Module:
    return body.eval().requires_grad_(False)

"""Augmentation of training batches: draw once on the host, apply on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustdd_bench.toolkit.dsa import (
    Augmentation,
    AugmentationParams,
    apply,
    apply_grouped,
    apply_table,
    grouped_table,
)
from robustdd_bench.toolkit.fast.capture import Inputs


@dataclass(frozen=True, slots=True)
class Drawn:
    """An augmentation that has been drawn for one batch: images in, images out."""

    params: AugmentationParams

    def __call__(self, features: Tensor) -> Tensor:
        """Apply it to a batch (B,C,H,W)."""
        return apply(features, self.params)


class Augmenter:
    """Draws one augmentation a batch, each sample with parameters of its own.

    Args:
        strategy: "none" or families of DSA joined by underscores.
        generator: a CPU generator.
        flip: whether mirrored images keep their label; if not, the flip family is left out.
    """

    def __init__(self, strategy: str, generator: torch.Generator, *, flip: bool = True) -> None:
        augmentation = Augmentation.parse(strategy)
        self.augmentation = augmentation if flip else augmentation.without("flip")
        self.generator = generator

    def params(self, count: int, shape_HW: Sequence[int]) -> AugmentationParams:
        """What is drawn for a batch of `count` images, on the host."""
        return self.augmentation.draw(count, shape_HW, self.generator)

    def draw(self, x_BCHW: Tensor) -> Drawn | None:
        """A fixed augmentation for a batch of that size and device; None if there is none."""
        if not self.augmentation.families:
            return None
        return Drawn(self.params(len(x_BCHW), x_BCHW.shape[-2:]).to(x_BCHW.device))


GroupedAugment = Callable[[Tensor, Sequence[int]], Tensor]
"""Images (B,C,H,W), group after group, and how many there are of each: the same, augmented."""


def draw_grouped(
    augmentation: Augmentation,
    groups: int,
    shape_HW: Sequence[int],
    generator: torch.Generator,
    inputs: Inputs | None,
) -> GroupedAugment:
    """One siamese augmentation for each group of a batch, as methods augment class by class.

    Args:
        augmentation: the strategy.
        groups: how many.
        shape_HW: height and width of an image.
        generator: a CPU generator.
        inputs: of a captured step: what was drawn is put there, and one function serves every draw;
            None: only what was drawn is applied.
    """
    drawn = [augmentation.draw(1, shape_HW, generator, siamese=True) for _ in range(groups)]
    if inputs is None:
        return partial(apply_grouped, params=drawn)
    families = augmentation.families
    table = inputs.put("table", grouped_table(families, drawn))
    return partial(apply_table, families=families, table_G4=table)


def put_drawn(inputs: Inputs, params: AugmentationParams) -> Drawn | None:
    """The same augmentation with its parameters among the inputs of a captured step.

    It holds until the next call with that family and batch size. None for no augmentation.
    """
    if params.family == "none":
        return None
    return Drawn(AugmentationParams(params.family, inputs.put(params.family, params.values)))

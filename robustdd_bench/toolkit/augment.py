"""Augmentation of training batches: draw once on the host, apply on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from robustdd_bench.toolkit.dsa import Augmentation, apply
from robustdd_bench.toolkit.flat import Augment


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

    def draw(self, x_BCHW: Tensor) -> Augment | None:
        """A fixed augmentation for a batch of that size and device; None if there is none."""
        if str(self.augmentation) == "none":
            return None
        parameters = self.augmentation.draw(
            len(x_BCHW), (x_BCHW.shape[-2], x_BCHW.shape[-1]), self.generator
        ).to(x_BCHW.device)
        return lambda features: apply(features, parameters)

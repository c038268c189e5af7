"""Real batches of chosen classes, drawn on the host and gathered on the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class ClassSampler:
    """Draws training images of each class, without repetition within a batch.

    The draw is made by a CPU generator, so it is the same on every device, and it reaches the
    device in one copy that nothing waits for.

    Args:
        class_indices: the indices of each class's images, as `DistillTask.class_indices` gives
            them, on the device of the images.
    """

    def __init__(self, class_indices: Sequence[Tensor]) -> None:
        self._counts = [len(index) for index in class_indices]
        self._first = [0, *itertools.accumulate(self._counts)]
        self._flat = torch.cat(list(class_indices))

    def draw(
        self, classes: Sequence[int], count: int, generator: torch.Generator
    ) -> tuple[Tensor, list[int]]:
        """`count` images of each of `classes`, or all of a class that has fewer.

        Args:
            classes: class numbers.
            count: images of each.
            generator: a CPU generator.

        Returns:
            Indices of images, class after class, and how many there are of each.
        """
        parts = []
        for k in classes:
            order = torch.randperm(self._counts[k], generator=generator)[:count]
            parts.append(order + self._first[k])
        where = torch.cat(parts).to(self._flat.device, non_blocking=True)
        return self._flat[where], [len(part) for part in parts]

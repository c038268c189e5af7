"""What difficulty-aligned matching starts from: images that experts know, and their logits.

Guo et al. 2024 (DATM), by their published code. A class's real images are looked at in a random
order; the first that the first expert classifies correctly are taken, and if it knows too few,
those that the second knows, and so on. An image's label starts from the mean logits of those
experts that classify it correctly; where the images are random ones, from the logits of one expert,
right or wrong. The published code looks for ever if all experts together know too few images of a
class; here the rest are random ones, their labels start as confident hard labels, and the log says
so.

Shapes: N training images, n distilled images, K classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.fast.flat import FlatNetwork

CHUNK = 256


class Experts:
    """Experts at one epoch, as classifiers.

    Args:
        network: their architecture, from its input space.
        layer: the preprocessing layer.
        weights: for each expert a function that gives its weights (P,).
    """

    def __init__(
        self, network: FlatNetwork, layer: nn.Module, weights: Sequence[Callable[[], Tensor]]
    ) -> None:
        self._network = network
        self._layer = layer
        self._weights = weights

    @torch.no_grad()
    def correct_images(
        self, task: DistillTask, ipc: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Real images that an expert classifies correctly.

        Args:
            task: the training images.
            ipc: images per class.
            generator: of the order, a CPU generator.

        Returns:
            Indices (K*ipc,) of training images, ordered by class, and how many of them no expert
            classifies correctly.
        """
        orders = []
        for index in task.class_indices():
            order = torch.randperm(len(index), generator=generator)
            orders.append(index[order.to(index.device)])
        chosen: list[list[int]] = [[] for _ in orders]
        for weights in self._weights:
            theta = weights()
            for label, order in enumerate(orders):
                for where in order.split(CHUNK):
                    if len(chosen[label]) >= ipc:
                        break
                    logits = self._network(theta, self._layer(task.pixels(where)))
                    known = where[logits.argmax(1) == label].tolist()
                    chosen[label] += [i for i in known if i not in chosen[label]]
            if all(len(each) >= ipc for each in chosen):
                break
        missing = 0
        for found, order in zip(chosen, orders, strict=True):
            missing += max(0, ipc - len(found))
            if len(found) < ipc:
                found += [i for i in order.tolist() if i not in found]
        where = torch.tensor([i for each in chosen for i in each[:ipc]], device=task.device)
        return where, missing

    @torch.no_grad()
    def first_logits(self, images: Tensor) -> Tensor:
        """Logits (n,K) of the first expert for images (n,C,H,W) of its input space."""
        theta = self._weights[0]()
        return torch.cat([self._network(theta, part) for part in images.split(CHUNK)])

    @torch.no_grad()
    def mean_logits(self, images: Tensor, labels: Tensor, fallback: Tensor) -> Tensor:
        """Mean logits of the experts that classify each image correctly.

        Args:
            images: (n,C,H,W), in the network's input space.
            labels: (n,) int64.
            fallback: (n,K), for images that none of them classifies correctly.

        Returns:
            (n,K) float32.
        """
        total = torch.zeros_like(fallback)
        count = torch.zeros(len(labels), 1, device=labels.device)
        for weights in self._weights:
            theta = weights()
            parts = [self._network(theta, part) for part in images.split(CHUNK)]
            logits = torch.cat(parts)
            right = (logits.argmax(1) == labels).unsqueeze(1)
            total += torch.where(right, logits, 0)
            count += right
        return torch.where(count > 0, total / count.clamp_min(1), fallback)

"""Coresets without a network: random images, all images, and k-means centroids.

Shapes: N images, S images per class, C channels, H height, W width, P pixels of an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.operations import Facts, MakingOperations


class Random(Distiller):
    """`ipc` random training images of each class, without repetition."""

    @settings
    class Config:
        """Nothing to set."""

    real_images: ClassVar[bool] = True
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_plain.toml")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Draw the images."""
        ipc = task.required_ipc()
        images, labels = task.real_images(ipc, task.seeds.generator("random"))
        return DistilledSet(images=images, labels=labels)

    def operations(self, facts: Facts) -> MakingOperations:
        """None: images are only read."""
        return MakingOperations()


class Full(Distiller):
    """All training images, whatever the images per class: the upper end of the scale."""

    reference: ClassVar[bool] = True

    @settings
    class Config:
        """Nothing to set."""

    real_images: ClassVar[bool] = True
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_plain.toml")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Return the training set."""
        return DistilledSet(images=task.pixels(), labels=task.labels)

    def operations(self, facts: Facts) -> MakingOperations:
        """None: images are only read."""
        return MakingOperations()


class KMeans(Distiller):
    """The centroids of k-means with k = `ipc`, class by class, in PIXEL space.

    This is the k-means baseline of DC-BENCH (Cui et al. 2022): its images are means of real ones,
    not the real images nearest to them. Lloyd's algorithm from k-means++ seeds.
    """

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation_k_means.bib")

    @settings
    class Config:
        """How long, and how often, to look for centroids."""

        iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 100
        """Rounds of Lloyd's algorithm at most; it stops earlier when no image changes cluster."""
        restarts: Annotated[int, Field(ge=1, le=10_000)] = 3
        """Starts for each class; the one with the smallest sum of squares is kept."""

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_k_means.toml")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Cluster each class."""
        ipc = task.required_ipc()
        images, labels = [], []
        with reporter.progress("k-means", task.num_classes) as bar:
            for k, index in enumerate(task.class_indices()):
                pixels = task.pixels(index)
                best = min(
                    (
                        kmeans(
                            pixels.flatten(1),
                            ipc,
                            task.seeds.generator("k-means", k, start),
                            self.config.iterations,
                        )
                        for start in range(self.config.restarts)
                    ),
                    key=lambda found: found[1],
                )
                images.append(best[0].view(ipc, *pixels.shape[1:]))
                labels.append(torch.full((ipc,), k, device=task.device))
                bar.advance()
        return DistilledSet(images=torch.cat(images), labels=torch.cat(labels))

    def operations(self, facts: Facts) -> MakingOperations:
        """Distances of all images to all centroids, in every round if none ends early."""
        config: KMeans.Config = self.config
        rounds = config.restarts * (2 * config.iterations + 2)
        return MakingOperations(distill=2.0 * rounds * facts.train * facts.ipc * facts.pixels)


def kmeans(
    x_NP: Tensor, count: int, generator: torch.Generator, iterations: int
) -> tuple[Tensor, float]:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007).

    A cluster that runs empty moves to the point that is farthest from its centroid.

    Args:
        x_NP: points.
        count: centroids, at most N.
        generator: a CPU generator.
        iterations: rounds at most.

    Returns:
        Centroids (count,P), and the sum of squared distances to the nearest one.
    """
    x = x_NP.double()
    centroids = x[_seeds(x, count, generator)]
    nearest = torch.full((len(x),), -1, device=x.device)
    for _ in range(iterations):
        distance, found = _squared_distances(x, centroids).min(1)
        if torch.equal(found, nearest):
            break
        nearest = found
        # A product with the membership matrix: no atomics, so the same bits every time.
        member = torch.nn.functional.one_hot(nearest, count).to(x.dtype)
        size = member.sum(0)
        centroids = (member.T @ x) / size.clamp_min(1).unsqueeze(1)
        empty = torch.nonzero(size == 0).flatten()
        farthest = distance.argsort(descending=True, stable=True)[: len(empty)]
        centroids[empty] = x[farthest]
    inertia = _squared_distances(x, centroids).amin(1).sum()
    return centroids.to(x_NP.dtype), float(inertia)


def _seeds(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of k-means++ seeds: each drawn in proportion to its squared distance."""
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    distance = _squared_distances(x, x[chosen]).flatten()
    for _ in range(count - 1):
        weights = distance.clone()
        weights[chosen] = 0
        total = weights.cumsum(0)
        if float(total[-1]) == 0:  # only copies of the chosen points are left
            rest = torch.ones_like(weights)
            rest[chosen] = 0
            total = rest.cumsum(0)
        at = torch.rand(1, generator=generator, dtype=torch.float64).to(x.device) * total[-1]
        pick = min(int(torch.searchsorted(total, at, right=True)), len(x) - 1)
        chosen.append(pick)
        distance = torch.minimum(distance, _squared_distances(x, x[pick : pick + 1]).flatten())
    return torch.tensor(chosen, device=x.device)


def _squared_distances(x_NP: Tensor, y_MP: Tensor) -> Tensor:
    """(N,M)."""
    products = x_NP @ y_MP.T
    return (x_NP.square().sum(1, keepdim=True) - 2 * products + y_MP.square().sum(1)).clamp_min(0)

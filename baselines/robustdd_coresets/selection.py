"""Coresets in feature space: greedy k-centre, and herding.

The features are the input of the last linear layer of one network of the track, trained naturally
on all training images; both methods choose real images, class by class, and are deterministic once
the features are given.

Shapes: N images of a class, F features, S images per class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_coresets.training import real_features, train_network

Select = Callable[[Tensor, int], Tensor]


@settings
class FeatureConfig:
    """How the feature network is trained. Our own choice: papers do not agree on one."""

    epochs: Annotated[int, Field(ge=0, le=100_000)] = 20
    """Passes over the training images."""
    learning_rate: Annotated[float, Field(gt=0, le=1e38)] = 0.01
    """Learning rate of SGD, constant."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 5e-4
    """Weight decay of SGD."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Images a step."""


def k_centre(features_NF: Tensor, count: int) -> Tensor:
    """Farthest-first traversal (Gonzalez 1985; Sener and Savarese 2018).

    The first centre is the image nearest to the mean; each further one is the image whose nearest
    centre is farthest away.

    Args:
        features_NF: features of one class.
        count: centres, at most N.

    Returns:
        Indices (count,) in the order of choice, on the features' device.
    """
    x = features_NF.double()
    chosen = [(x - x.mean(0)).square().sum(1).argmin()]
    distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(1))
        # Copies of a centre are as near as the centre itself, which must not be chosen again.
        distance[chosen[-1]] = -1
        chosen.append(distance.argmax())
    return torch.stack(chosen)


def herding(features_NF: Tensor, count: int) -> Tensor:
    """Herding (Welling 2009; Rebuffi et al. 2017): greedy choice by the mean of what is chosen.

    Each image is the one, not yet chosen, that brings the mean of the chosen features nearest to
    the mean of the class.

    Args:
        features_NF: features of one class.
        count: images, at most N.

    Returns:
        Indices (count,) in the order of choice, on the features' device.
    """
    x = features_NF.double()
    mean = x.mean(0)
    total = torch.zeros_like(mean)
    taken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    chosen: list[Tensor] = []
    for step in range(1, count + 1):
        distance = ((total + x) / step - mean).square().sum(1)
        pick = distance.masked_fill(taken, torch.inf).argmin()
        chosen.append(pick)
        taken[pick] = True
        total = total + x[pick]
    return torch.stack(chosen)


def _choose(
    task: DistillTask, reporter: Reporter, config: FeatureConfig, select: Select
) -> DistilledSet:
    ipc = task.required_ipc()
    network = train_network(
        task,
        reporter,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
    )
    found = real_features(network, task)
    where = torch.cat([index[select(found[index], ipc)] for index in task.class_indices()])
    return DistilledSet(images=task.pixels(where), labels=task.labels[where])


class KCentre(Distiller):
    """Greedy k-centre in the feature space of a naturally trained network."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation_k_centre.bib")

    Config = FeatureConfig
    real_images: ClassVar[bool] = True
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_k_centre.toml")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Train the network, choose images."""
        return _choose(task, reporter, self.config, k_centre)

    def operations(self, facts: Facts) -> MakingOperations:
        """Training the network, and the features of all images."""
        return _operations(self.config, facts)


class Herding(Distiller):
    """Herding in the feature space of a naturally trained network."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation_herding.bib")

    Config = FeatureConfig
    real_images: ClassVar[bool] = True
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_herding.toml")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Train the network, choose images."""
        return _choose(task, reporter, self.config, herding)

    def operations(self, facts: Facts) -> MakingOperations:
        """Training the network, and the features of all images."""
        return _operations(self.config, facts)


def _operations(config: FeatureConfig, facts: Facts) -> MakingOperations:
    each = config.epochs * facts.network.weights + facts.network.forward
    return MakingOperations(distill=facts.train * each)

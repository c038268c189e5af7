"""Features of real images: a network trained naturally on the training set.

Shapes: N images, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask, Reporter
from robustdd_bench.toolkit.checkpoint import require_finite
from robustdd_bench.toolkit.inputspace import features

_BATCH = 1024


def train_network(
    task: DistillTask,
    reporter: Reporter,
    *,
    epochs: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
) -> nn.Module:
    """A fresh network of the track, trained naturally on all training images by SGD.

    Args:
        task: what to train on.
        reporter: told the loss of each step.
        epochs: passes over the training images.
        learning_rate: constant.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: images a step; the last batch of an epoch may be smaller.

    Returns:
        The network in eval mode, its parameters frozen.

    Raises:
        RunFailedError: the training diverged.
    """
    network = task.network(task.seeds.seed("feature-network"))
    network.train()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    step = 0
    with reporter.progress("training the feature network", epochs) as bar:
        for epoch in range(epochs):
            source = task.seeds.generator("feature-order", epoch)
            order = torch.randperm(len(task.labels), generator=source).to(task.device)
            for index in torch.split(order, batch_size):
                logits = network(task.pixels(index))
                loss = nn.functional.cross_entropy(logits, task.labels[index])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                step += 1
                reporter.metrics(step, feature_loss=loss.detach())
            require_finite(step, feature_loss=loss.detach())
            bar.advance()
    return network.eval().requires_grad_(False)


def real_features(network: nn.Module, task: DistillTask) -> Tensor:
    """Features (N,F) of all training images, in their order."""
    with torch.no_grad():
        where = torch.arange(len(task.labels), device=task.device)
        parts = [features(network, task.pixels(index)) for index in torch.split(where, _BATCH)]
    return torch.cat(parts)

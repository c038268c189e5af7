"""The joint robust term of MAT: adversarial examples and synthesis, optimised together.

A summary of the paper that a machine wrote names such a joint optimisation, without a formula; the
paper's abstract does not, so it may not be in the paper at all. This one is ours. In every
iteration a batch of real images is drawn, attacked at the student's end theta_N, and

    L(theta_N) = |theta_N - phi_{t+M}|^2 / |phi_t - phi_{t+M}|^2 + gamma CE(f(x'; theta_N), y)

is what images and learning rate descend. The examples x' are constants of the gradient (Danskin),
so only dL/dtheta_N changes and the engine's adjoint stays exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.adversarial import Adversary, adversarial_loss
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.experts import family_seeds
from robustdd_bench.toolkit.trajectories.unroll import OuterLoss, matching_loss


class JointOuter:
    """The outer loss of each iteration.

    Args:
        task: real images, network and seeds.
        adversary: the attack on the student, in pixel space.
        weight: gamma.
        batch: real images in an iteration, at most all there are.
    """

    def __init__(self, task: DistillTask, adversary: Adversary, weight: float, batch: int) -> None:
        self._task = task
        self._adversary = adversary
        self._weight = weight
        self._batch = batch
        self._seeds = family_seeds(task.seeds)
        self._network = FlatNetwork(task.network(0), compile=task.compile)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The real images (B,C,H,W) and labels (B,) of an iteration."""
        generator = self._seeds.generator("joint-batch", iteration)
        order = torch.randperm(len(self._task.images), generator=generator)
        index = order[: self._batch].to(self._task.device)
        return self._task.pixels(index), self._task.labels[index]

    def __call__(self, iteration: int, start: Tensor, target: Tensor) -> OuterLoss:
        """The outer loss of an iteration that goes from `start` to `target`, both (P,)."""
        matching = matching_loss(start, target)
        x, y = self.batch(iteration)

        def loss(theta: Tensor) -> Tensor:
            noise = self._seeds.generator("joint-noise", iteration, device=self._task.device)
            robust = adversarial_loss(
                "pgd",
                self._network,
                theta,
                x,
                y,
                augment=None,
                adversary=self._adversary,
                beta=0.0,
                generator=noise,
            )
            return matching(theta) + self._weight * robust

        return loss

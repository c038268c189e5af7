"""The training of one expert, step by step.

With `ExpertRecipe.gsam_rho` the gradient of a step is that of GSAM, two passes of the same batch
under the same augmentation (`robustdd_bench.toolkit.trajectories.gsam`). An adversary attacks in
each of the two, at the weights of that pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask, Reporter
from robustdd_bench.errors import RunFailedError
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import Adversary, OverfittingGuard, adversarial_loss
from robustdd_bench.toolkit.augment import Augmenter, Drawn, put_drawn
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.fast.compile import SAMPLE
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.fast.precision import precision
from robustdd_bench.toolkit.trajectories.gsam import gsam_gradient
from robustdd_bench.toolkit.trajectories.recipe import ExpertRecipe

_GUARD_IMAGES = 512


@dataclass(frozen=True, slots=True)
class TrainedExpert:
    """A trajectory and how its training went."""

    snapshots: Tensor
    """(epochs+1, P) float32 on the CPU."""
    losses: list[float]
    """The mean training loss of each epoch."""
    accuracy: float
    """Of the last snapshot, on the images it was trained on."""
    guard: list[float]
    """Flavour "fast": accuracy under PGD on fixed training images after each epoch; else empty."""


class _Training:
    """The state of one expert's training, and its step.

    Every tensor stays where it is, so that the step can be captured and replayed.
    """

    def __init__(
        self, task: DistillTask, recipe: ExpertRecipe, seeds: Seeds, index: int, reporter: Reporter
    ) -> None:
        device = task.device
        self.task, self.recipe = task, recipe
        self.network = FlatNetwork(
            task.network(seeds.seed("expert-init", index)), compile=task.compile
        )
        self._held, self._note = False, reporter.note
        self.threat = ThreatModel("L2" if recipe.norm == "L2" else "Linf", recipe.eps)
        self._adversary = Adversary(
            threat=self.threat, steps=recipe.attack_steps, step_size=recipe.attack_step_size
        )
        self._noise = seeds.generator("expert-noise", index, device=device)
        self._augmenter = Augmenter(
            recipe.augmentation, seeds.generator("expert-augment", index), flip=task.allow_flip
        )
        self.theta = self.network.theta()
        self.phi = self.theta.clone()
        self._velocity = torch.zeros_like(self.theta)
        self.total = torch.zeros((), device=device)
        self._inputs = Inputs(device)
        self._replayer = Replayer(
            device,
            (self.theta, self.phi, self._velocity, self.total),
            (self._noise,) if device.type == "cuda" else (),
            reporter.note,
        )

    def step(self, batch: Tensor) -> None:
        """One step on the training images at `batch` (B,), which lies on the device."""
        size = len(batch)
        params = self._augmenter.params(size, self.task.images.shape[-2:])
        where = self._inputs.put("batch", batch)
        augment = put_drawn(self._inputs, params)
        if not self._held:
            self._hold(where[:SAMPLE])
        self._replayer.run((size, params.family), lambda: self._step(where, augment))

    def _hold(self, where: Tensor) -> None:
        """Hold the first compiled gradients, of weights and pixels, against eager ones."""
        self._held = True
        x, y = self.task.pixels(where), self.task.labels[where]

        def compute(network: FlatNetwork) -> tuple[Tensor, ...]:
            leaves = self.theta.detach().requires_grad_(), x.detach().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(network(*leaves), y), leaves)

        self.network.hold(compute, self._note)

    def _step(self, where: Tensor, augment: Drawn | None) -> None:
        recipe, theta = self.recipe, self.theta

        def loss_and_gradient(weights: Tensor) -> tuple[Tensor, Tensor]:
            leaf = weights.detach().requires_grad_()
            loss = adversarial_loss(
                recipe.flavour,
                self.network,
                leaf,
                self.task.pixels(where),
                self.task.labels[where],
                augment=augment,
                adversary=self._adversary,
                beta=recipe.beta,
                generator=self._noise,
            )
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

        if recipe.gsam_rho:
            loss, gradient = gsam_gradient(
                loss_and_gradient,
                theta,
                rho=recipe.gsam_rho,
                alpha=recipe.gsam_alpha,
                adaptive=recipe.gsam_adaptive,
            )
        else:
            loss, gradient = loss_and_gradient(theta)
        if recipe.weight_decay:
            gradient = gradient + recipe.weight_decay * theta
        if recipe.momentum:
            gradient = self._velocity.copy_(recipe.momentum * self._velocity + gradient)
        theta.copy_(theta - recipe.learning_rate * gradient)
        if recipe.ema:
            self.phi.copy_(recipe.ema * self.phi + (1 - recipe.ema) * theta)
        self.total.add_(loss)

    def snapshot(self) -> Tensor:
        """The weights (P,) that are kept, on the CPU."""
        return (self.phi if self.recipe.ema else self.theta).cpu()


def train_expert(
    task: DistillTask, recipe: ExpertRecipe, seeds: Seeds, index: int, reporter: Reporter
) -> TrainedExpert:
    """Train one expert.

    Raises:
        RunFailedError: the loss or the weights became NaN or infinite, or single-step adversarial
            training collapsed.
    """
    with precision(recipe.precision, task.device):
        return _train(task, recipe, seeds, index, reporter)


def _train(
    task: DistillTask, recipe: ExpertRecipe, seeds: Seeds, index: int, reporter: Reporter
) -> TrainedExpert:
    device = task.device
    training = _Training(task, recipe, seeds, index, reporter)
    network, order = training.network, seeds.generator("expert-order", index)
    guard = _guard(task, network, training.threat, seeds, index)
    snapshots = torch.empty(recipe.epochs + 1, network.size)
    snapshots[0] = training.snapshot()
    losses: list[float] = []
    with reporter.progress(f"expert {index}", recipe.epochs) as progress:
        for epoch in range(1, recipe.epochs + 1):
            training.total.zero_()
            shuffled = torch.randperm(len(task.images), generator=order).to(device)
            batches = shuffled.split(recipe.batch_size)
            for batch in batches:
                training.step(batch)
            snapshots[epoch] = training.snapshot()
            losses.append(float(training.total) / len(batches))
            if not torch.isfinite(snapshots[epoch]).all() or not math.isfinite(losses[-1]):
                raise RunFailedError(
                    f"expert {index} diverged in epoch {epoch} (loss {losses[-1]}); lower "
                    "expert_lr or the eps of the experts"
                )
            if recipe.flavour == "fast" and guard.collapsed(training.theta):
                before, after = guard.accuracies[-2:]
                raise RunFailedError(
                    f"expert {index} collapsed in epoch {epoch} (catastrophic overfitting: "
                    f"accuracy under PGD fell from {before:.0%} to {after:.0%}); "
                    "lower the eps of the experts or expert_lr, or set flavour=pgd"
                )
            reporter.metrics(epoch, loss=losses[-1])
            progress.advance()
    reporter.work(recipe.epochs * len(task.images), "images")
    with torch.no_grad():
        end = snapshots[-1].to(device)
        hits = torch.zeros((), device=device)
        for where in torch.arange(len(task.images), device=device).split(1024):
            hits += (network(end, task.pixels(where)).argmax(1) == task.labels[where]).sum()
    return TrainedExpert(snapshots, losses, float(hits) / len(task.images), guard.accuracies)


def _guard(
    task: DistillTask, network: FlatNetwork, threat: ThreatModel, seeds: Seeds, index: int
) -> OverfittingGuard:
    order = torch.randperm(len(task.images), generator=seeds.generator("expert-guard", index))
    chosen = order[:_GUARD_IMAGES].to(task.device)
    seed = seeds.seed("expert-guard-noise", index)
    return OverfittingGuard(network, task.pixels(chosen), task.labels[chosen], threat, seed)

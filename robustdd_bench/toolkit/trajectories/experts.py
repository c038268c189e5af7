"""Experts: networks trained on the real data whose weights, epoch by epoch, are the trajectory.

A trajectory is phi_0 .. phi_E with phi_0 = theta_0 and, after every step of gradient descent,
phi <- m phi + (1 - m) theta: the exponential moving average with which MAT smooths the weights of
adversarially trained experts (arXiv 2503.12069); a snapshot of phi is kept once an epoch. m = 0
gives the plain trajectory of MTT (Cazenavette et al. 2022).

Only the epochs that matching can use are trained. A trajectory is a safetensors file, written when
its expert ends, in a folder named by a hash of everything that shaped it; runs share the folders.

Seeds leave the method's name out, so two methods with the same recipe have the same experts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask, Part, Reporter
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.identity import identity
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import (
    FAST_STEP,
    FLAVOURS,
    Adversary,
    OverfittingGuard,
    adversarial_loss,
)
from robustdd_bench.toolkit.augment import Augmenter, Drawn, put_drawn
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.fast.compile import SAMPLE
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.fast.precision import check_precision, precision

# Raise when a change of the code below changes trajectories, so that stored ones are not reused.
TRAINER_VERSION = 1
_GUARD_IMAGES = 512
_FORMAT = "robustdd-expert-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRecipe:
    """Everything that shapes a trajectory, beside the data, the network and the seed."""

    ADDED: ClassVar[Mapping[str, str]] = {"precision": "0.2.0"}
    """Later fields, with the version in which each came (see `robustdd_bench.identity`)."""

    epochs: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augmentation: str = "none"
    flavour: str = "natural"
    norm: str = "Linf"
    eps: float = 0.0
    """Radius of the adversary, in pixel units."""
    attack_steps: int = 10
    attack_step_size: float = 0.0
    """In pixel units."""
    beta: float = 6.0
    ema: float = 0.0
    precision: str = "default"
    """Of the training; see `robustdd_bench.toolkit.fast.precision`."""

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise ValueError(f"flavour must be one of {', '.join(FLAVOURS)}, not {self.flavour!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), not {self.ema}")
        check_precision(self.precision)
        if self.eps < 0:
            raise ValueError(f"eps of the experts must not be negative, not {self.eps}")

    def canonical(self) -> ExpertRecipe:
        """The same training with fields that have no effect set to their defaults.

        PGD-AT with eps 0 is natural training: it must find the same stored experts.
        """
        single = self.flavour in ("pgd", "fast")
        natural = self.flavour == "natural" or (single and self.eps == 0)
        if natural:
            return dataclasses.replace(
                self,
                flavour="natural",
                norm="Linf",
                eps=0.0,
                attack_steps=0,
                attack_step_size=0.0,
                beta=0.0,
            )
        if self.flavour == "fast":
            step = FAST_STEP * self.eps
            return dataclasses.replace(self, attack_steps=1, attack_step_size=step, beta=0.0)
        return dataclasses.replace(self, beta=0.0) if single else self

    def description(self) -> dict[str, Any]:
        """The fields that are part of its identity, as JSON values."""
        fields: dict[str, Any] = identity(self)
        return fields


def family_seeds(seeds: Seeds) -> Seeds:
    """The seeds that all trajectory methods share (the method's name is left out)."""
    return Seeds(seeds.base, seeds.track, "trajectory")


class ExpertStore:
    """The stored experts of one recipe on one task.

    Args:
        task: gives data, network, seeds, device and the shared folder.
        recipe: how experts are trained.
    """

    def __init__(self, task: DistillTask, recipe: ExpertRecipe) -> None:
        self.task = task
        self.recipe = recipe.canonical()
        self.seeds = family_seeds(task.seeds)
        self.key = self._key()
        self.folder = task.store_dir / "experts" / self.key

    def _description(self) -> dict[str, Any]:
        network = self.task.network(0)
        # Experts are known by how they were computed; eager ones as before there was a choice.
        compiled = {"compile": True} if self.task.compile else {}
        return compiled | {
            "trainer": TRAINER_VERSION,
            "recipe": self.recipe.description(),
            "seeds": identity(self.seeds),
            "preprocessing": identity(self.task.preprocessing),
            "flip": self.task.allow_flip,
            "data": self.task.data_sha256,
            "network": hashlib.sha256(str(network).encode()).hexdigest(),
            "torch": torch.__version__,
            "device": self.task.device.type,
            "threads": torch.get_num_threads() if self.task.device.type == "cpu" else 0,
        }

    def _key(self) -> str:
        text = json.dumps(self._description(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def parts(self, count: int) -> list[Part]:
        """One part an expert."""
        return [Part(f"expert-{k}", self.folder / f"expert-{k}.safetensors") for k in range(count)]

    def train(self, part: Part, reporter: Reporter) -> None:
        """Train the expert of `part` and write its trajectory.

        Raises:
            RunFailedError: the expert diverged or collapsed; nothing is written.
        """
        index = int(part.name.rpartition("-")[2])
        expert = train_expert(self.task, self.recipe, self.seeds, index, reporter)
        metadata = {
            "format": _FORMAT,
            "description": json.dumps(self._description(), sort_keys=True),
            "train_accuracy": f"{expert.accuracy:.6f}",
            "losses": json.dumps([round(x, 6) for x in expert.losses]),
            "guard": json.dumps([round(x, 6) for x in expert.guard]),
        }
        write_safetensors(part.output, {"snapshots": expert.snapshots}, metadata)

    def load(self, count: int) -> Trajectories:
        """The trajectories of experts 0..count-1.

        Raises:
            UsageError: an expert is missing or damaged.
        """
        loaded = []
        size = FlatNetwork(self.task.network(0)).size
        for part in self.parts(count):
            tensors, metadata = read_safetensors(part.output)
            snapshots = tensors.get("snapshots")
            if metadata.get("format") != _FORMAT or snapshots is None:
                raise UsageError(f"{part.output} is not a stored expert; delete it")
            if snapshots.ndim != 2 or len(snapshots) != self.recipe.epochs + 1:
                raise UsageError(
                    f"{part.output} holds {len(snapshots) - 1} epochs, not {self.recipe.epochs}; "
                    "delete it"
                )
            if snapshots.shape[1] != size or snapshots.dtype != torch.float32:
                raise UsageError(
                    f"{part.output} does not hold the {size} weights of this network; delete it"
                )
            # The last alone: the others stay on the disk until matching wants them.
            if not bool(torch.isfinite(snapshots[-1]).all()):
                raise UsageError(f"{part.output} holds NaN or infinity; delete it")
            loaded.append(snapshots)
        return Trajectories(loaded, self.task.device, self.key)


class Trajectories:
    """Snapshots (epochs+1, P) of several experts, read from memory-mapped files.

    On a GPU they are moved there at once where they take no more than `RESIDENT` of its free
    memory: an iteration then waits for no transfer.
    """

    RESIDENT = 0.25

    def __init__(self, snapshots: list[Tensor], device: torch.device, key: str = "") -> None:
        self.key = key
        self._device = device
        if device.type == "cuda":
            size = sum(each.numel() * each.element_size() for each in snapshots)
            if size <= self.RESIDENT * torch.cuda.mem_get_info(device)[0]:
                snapshots = [each.to(device) for each in snapshots]
        self._snapshots = snapshots

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def epochs(self) -> int:
        """The last epoch of which every expert has a snapshot."""
        return min(len(snapshots) for snapshots in self._snapshots) - 1

    def at(self, expert: int, epoch: int) -> Tensor:
        """The weights (P,) of an expert after `epoch` epochs, on the device."""
        return self._snapshots[expert][epoch].to(self._device, non_blocking=True)


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
        leaf = theta.detach().requires_grad_()
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
        (gradient,) = torch.autograd.grad(loss, leaf)
        if recipe.weight_decay:
            gradient = gradient + recipe.weight_decay * theta
        if recipe.momentum:
            gradient = self._velocity.copy_(recipe.momentum * self._velocity + gradient)
        theta.copy_(theta - recipe.learning_rate * gradient)
        if recipe.ema:
            self.phi.copy_(recipe.ema * self.phi + (1 - recipe.ema) * theta)
        self.total.add_(loss.detach())

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

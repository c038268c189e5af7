"""Trajectory matching: what MTT, MAT and any later trajectory method share.

Each iteration draws an expert and an epoch t in 0..T-1, starts a student at phi_t, lets it take N
steps on the synthetic set and moves images and learning rate along the exact gradient of
|theta_N - phi_{t+M}|^2 / |phi_t - phi_{t+M}|^2 (Cazenavette et al. 2022, eq. 2 to 4).

The student's learning rate is alpha = exp(a) and a is what is learned, clamped to
[log 1e-6, log 1]: alpha can be neither negative nor NaN, and a step is relative. `alpha_lr` is the
learning rate of a (ours; the public code steps on alpha itself).

Randomness of iteration i is a function of (seed, i), so that resuming needs no generator state.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustdd_bench.distillers import (
    DistilledSet,
    DistillTask,
    Part,
    Reporter,
    StagedDistiller,
)
from robustdd_bench.errors import UsageError
from robustdd_bench.toolkit.augment import Augmenter
from robustdd_bench.toolkit.checkpoint import (
    Checkpoint,
    load_optimiser_state,
    optimiser_state,
    require_finite,
)
from robustdd_bench.toolkit.experts import (
    ExpertRecipe,
    ExpertStore,
    Trajectories,
    family_seeds,
)
from robustdd_bench.toolkit.flat import FlatNetwork
from robustdd_bench.toolkit.inputspace import split_network, to_pixels
from robustdd_bench.toolkit.unroll import OuterLoss, Step, adjoint_gradients, matching_loss

OuterFactory = Callable[[int, Tensor, Tensor], OuterLoss]
LOG_ALPHA_RANGE = (math.log(1e-6), 0.0)
CHECK_EVERY = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryConfig:
    """Hyper-parameters of trajectory matching. Defaults: MTT's for CIFAR-10, 10 images a class."""

    experts: int = 100
    """Number of experts."""
    expert_lr: float = 0.01
    """Learning rate of the experts (SGD)."""
    expert_momentum: float = 0.0
    """Momentum of the experts."""
    expert_weight_decay: float = 0.0
    """Weight decay of the experts."""
    expert_batch: int = 256
    """Batch size of the experts."""
    expert_augmentation: str = "track"
    """Augmentation of the experts; "track": that of the track's students."""
    student_steps: int = 30
    """N: gradient steps of the student on the synthetic set."""
    match_epochs: int = 2
    """M: epochs of the expert that those steps have to match."""
    start_epochs: int = 20
    """T: a student starts at an expert's epoch 0..T-1."""
    student_batch: int = 0
    """Synthetic images in a student step; 0: all."""
    iterations: int = 5000
    """Updates of the synthetic images."""
    image_optimiser: str = "sgd"
    """"sgd" (momentum `image_momentum`) or "adam"."""
    image_lr: float = 100.0
    """Learning rate of the images, in the network's input space (normalised or whitened)."""
    image_momentum: float = 0.5
    """Momentum of the images' SGD."""
    alpha_init: float = 0.001
    """Student's learning rate at the start."""
    alpha_lr: float = 0.01
    """Learning rate of log alpha (Adam); 0: alpha stays as it is."""
    init: str = "real"
    """"real": random training images; "noise": uniform noise."""
    checkpoint_seconds: float = 10.0
    """A killed run loses at most about so many seconds of work."""
    keep_graphs: int = 0
    """Student steps whose graph is kept: more memory, less time, the same result."""

    def __post_init__(self) -> None:
        for name in ("experts", "expert_batch", "student_steps", "match_epochs", "start_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("expert_lr", "image_lr", "alpha_init"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in (
            "iterations",
            "student_batch",
            "keep_graphs",
            "alpha_lr",
            "checkpoint_seconds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("expert_momentum", "image_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.alpha_init > 1:
            raise ValueError(f"alpha_init must be at most 1, not {self.alpha_init}")
        if self.image_optimiser not in ("sgd", "adam"):
            raise ValueError(f"image_optimiser must be sgd or adam, not {self.image_optimiser!r}")
        if self.init not in ("real", "noise"):
            raise ValueError(f"init must be real or noise, not {self.init!r}")

    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """Natural training of the experts under these hyper-parameters, only the epochs needed."""
        augmentation = self.expert_augmentation
        return ExpertRecipe(
            epochs=self.start_epochs - 1 + self.match_epochs,
            learning_rate=self.expert_lr,
            momentum=self.expert_momentum,
            weight_decay=self.expert_weight_decay,
            batch_size=self.expert_batch,
            augmentation=task.augmentation if augmentation == "track" else augmentation,
        )


class TrajectoryMatcher:
    """The distillation loop.

    Args:
        config: hyper-parameters.
        task: data, network, seeds, folders.
        trajectories: the experts.
        outer: the outer loss as a function of (iteration, start, target); by default the
            matching loss.
    """

    def __init__(
        self,
        config: TrajectoryConfig,
        task: DistillTask,
        trajectories: Trajectories,
        outer: OuterFactory | None = None,
    ) -> None:
        self.config = config
        self.task = task
        self.trajectories = trajectories
        self.seeds = family_seeds(task.seeds)
        self.ipc = task.required_ipc()
        wanted = config.start_epochs - 1 + config.match_epochs
        if len(trajectories) < 1 or trajectories.epochs < wanted:
            have = trajectories.epochs if len(trajectories) else 0
            raise UsageError(
                f"start_epochs {config.start_epochs} and match_epochs {config.match_epochs} need "
                f"{wanted} epochs of each expert, and {have} are stored; lower them or train more"
            )
        # The recipes' learning rates hold in the network's input space, behind the preprocessing.
        self.layer, body = split_network(task.network(self.seeds.seed("student-shape")))
        self.network = FlatNetwork(nn.Sequential(nn.Identity(), body))
        self._outer = outer or (lambda _, start, target: matching_loss(start, target))

    def initial_images(self) -> tuple[Tensor, Tensor]:
        """Images (K*ipc,C,H,W) the distillation starts from, in input space; labels (K*ipc,)."""
        generator = self.seeds.generator("initial-images")
        images, labels = self.task.real_images(self.ipc, generator)
        if self.config.init == "noise":
            images = torch.rand(images.shape, generator=generator).to(images)
        with torch.no_grad():
            return self.layer(images).clone(), labels

    def _key(self) -> str:
        """What a checkpoint must agree with to be gone on from."""
        shape = dataclasses.asdict(self.config)
        seeds = dataclasses.asdict(self.seeds)
        text = json.dumps([shape, seeds, self.ipc, self.trajectories.key], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _steps(self, iteration: int, images: Tensor) -> tuple[int, int, list[Step]]:
        """Expert, epoch and student steps of an iteration."""
        config = self.config
        generator = self.seeds.generator("matching", iteration)
        expert = int(torch.randint(len(self.trajectories), (), generator=generator))
        epoch = int(torch.randint(config.start_epochs, (), generator=generator))
        augmenter = Augmenter(self.task.augmentation, generator, flip=self.task.allow_flip)
        indices: list[Tensor] = []
        steps = []
        whole = not 0 < config.student_batch < len(images)
        for _ in range(config.student_steps):
            if whole:
                index, batch = None, images
            else:
                if not indices:
                    order = torch.randperm(len(images), generator=generator).to(images.device)
                    indices = list(order.split(config.student_batch))
                index = indices.pop(0)
                batch = images[index]
            steps.append(Step(index, augmenter.draw(batch)))
        return expert, epoch, steps

    def _image_optimiser(self, images: Tensor) -> torch.optim.Optimizer:
        config = self.config
        if config.image_optimiser == "adam":
            return torch.optim.Adam([images], lr=config.image_lr)
        return torch.optim.SGD([images], lr=config.image_lr, momentum=config.image_momentum)

    def run(self, reporter: Reporter) -> DistilledSet:
        """Distil, from the last checkpoint if there is one.

        Raises:
            RunFailedError: images or loss became NaN or infinite.
        """
        config = self.config
        images, labels = self.initial_images()
        log_alpha = torch.tensor(math.log(config.alpha_init), device=images.device)
        checkpoint = Checkpoint(
            self.task.work_dir / "matching.safetensors", config.checkpoint_seconds, self._key()
        )
        done, tensors = checkpoint.load(images.device) or (0, {})
        if tensors:
            images, log_alpha = tensors["images"], tensors["log_alpha"]
        image_optimiser = self._image_optimiser(images)
        alpha_optimiser = torch.optim.Adam([log_alpha], lr=config.alpha_lr)
        load_optimiser_state(image_optimiser, tensors, "image_optimiser")
        load_optimiser_state(alpha_optimiser, tensors, "alpha_optimiser")

        def state() -> dict[str, Tensor]:
            return {
                "images": images,
                "log_alpha": log_alpha,
                **optimiser_state(image_optimiser, "image_optimiser"),
                **optimiser_state(alpha_optimiser, "alpha_optimiser"),
            }

        with reporter.progress("matching", config.iterations) as progress:
            progress.advance(done)
            for iteration in range(done, config.iterations):
                expert, epoch, steps = self._steps(iteration, images)
                start = self.trajectories.at(expert, epoch)
                target = self.trajectories.at(expert, epoch + config.match_epochs)
                alpha = log_alpha.exp()
                result = adjoint_gradients(
                    self.network,
                    images,
                    labels,
                    alpha,
                    start,
                    self._outer(iteration, start, target),
                    steps,
                    keep=config.keep_graphs,
                )
                images.grad = result.images
                image_optimiser.step()
                log_alpha.grad = result.alpha * alpha
                alpha_optimiser.step()
                log_alpha.clamp_(*LOG_ALPHA_RANGE)
                reporter.metrics(iteration + 1, loss=result.loss, alpha=alpha)
                progress.advance()
                if (iteration + 1) % CHECK_EVERY == 0 or iteration + 1 == config.iterations:
                    require_finite(
                        iteration + 1, images=images, log_alpha=log_alpha, loss=result.loss
                    )
                checkpoint.maybe_save(iteration + 1, state())
        return DistilledSet(
            images=to_pixels(self.layer, images.detach()),
            labels=labels,
            learning_rate=float(log_alpha.exp()),
            provenance={"iterations": config.iterations, "experts": len(self.trajectories)},
        )


class TrajectoryDistiller(StagedDistiller):
    """A method that matches trajectories; a subclass says how its experts are trained.

    The experts are the parts, one each; they live in the shared store.
    """

    @classmethod
    def quick_config(cls) -> TrajectoryConfig:
        """Two short experts and a few steps, saved after each; for `robustdd check-plugin`."""
        config: TrajectoryConfig = cls.Config(
            experts=2,
            expert_batch=16,
            start_epochs=1,
            match_epochs=1,
            student_steps=2,
            iterations=3,
            checkpoint_seconds=0.0,
        )
        return config

    @abc.abstractmethod
    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """How the experts are trained."""

    @abc.abstractmethod
    def outer(self, task: DistillTask) -> OuterFactory | None:
        """The outer loss, or None for the matching loss."""

    def parts(self, task: DistillTask) -> Sequence[Part]:
        """The experts.

        Raises:
            UsageError: a class has too few images for the set: said before anything is trained.
        """
        task.required_ipc()
        return ExpertStore(task, self.recipe(task)).parts(self.config.experts)

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        """Train one expert."""
        ExpertStore(task, self.recipe(task)).train(part, reporter)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Match the experts' trajectories."""
        experts = ExpertStore(task, self.recipe(task)).load(self.config.experts)
        return TrajectoryMatcher(self.config, task, experts, self.outer(task)).run(reporter)

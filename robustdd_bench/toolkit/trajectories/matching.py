"""Trajectory matching: what MTT, MAT and any later trajectory method share.

Each iteration draws an expert and an epoch t in 0..T-1, starts a student at phi_t, lets it take N
steps on the synthetic set and moves images and learning rate along the exact gradient of
|theta_N - phi_{t+M}|^2 / |phi_t - phi_{t+M}|^2 (Cazenavette et al. 2022, eq. 2 to 4).

What is learned, images, alpha and labels, is in `robustdd_bench.toolkit.trajectories.learned`, the
hyper-parameters in `robustdd_bench.toolkit.trajectories.config`, what methods do otherwise than MTT
in `robustdd_bench.toolkit.trajectories.rules`.

Randomness of iteration i is a function of (seed, i), so that resuming needs no generator state.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

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
from robustdd_bench.identity import identity
from robustdd_bench.toolkit.augment import Augmenter
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.inputspace import split_network, to_pixels
from robustdd_bench.toolkit.loop import Distillation, iterate
from robustdd_bench.toolkit.trajectories.config import TrajectoryConfig
from robustdd_bench.toolkit.trajectories.engine import AdjointEngine
from robustdd_bench.toolkit.trajectories.experts import (
    ExpertRecipe,
    ExpertStore,
    Trajectories,
    family_seeds,
)
from robustdd_bench.toolkit.trajectories.learned import Learned, label_logits
from robustdd_bench.toolkit.trajectories.rules import Rules
from robustdd_bench.toolkit.trajectories.starting import Experts
from robustdd_bench.toolkit.trajectories.unroll import OuterLoss, Step, matching_loss

__all__ = [
    "OuterFactory",
    "TrajectoryConfig",
    "TrajectoryDistiller",
    "TrajectoryMatcher",
]

OuterFactory = Callable[[int, Tensor, Tensor], OuterLoss]


class TrajectoryMatcher(Distillation):
    """One distillation.

    Args:
        config: hyper-parameters.
        task: data, network, seeds, folders.
        trajectories: the experts.
        outer: the outer loss as a function of (iteration, start, target); by default the
            matching loss.
        rules: what the method does otherwise than MTT.
    """

    def __init__(
        self,
        config: TrajectoryConfig,
        task: DistillTask,
        trajectories: Trajectories,
        outer: OuterFactory | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.config = config
        self.rules = rules or Rules()
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
        self.network = FlatNetwork(nn.Sequential(nn.Identity(), body), compile=task.compile)
        self._unknown_images = 0
        self._outer = outer or (lambda _, start, target: matching_loss(start, target))

    def initial_images(self) -> tuple[Tensor, Tensor]:
        """Images (K*ipc,C,H,W) the distillation starts from, in input space; labels (K*ipc,)."""
        generator = self.seeds.generator("initial-images")
        if self.rules.correct_images and self.config.init == "real":
            known = self._experts().correct_images(self.task, self.ipc, generator)
            where, self._unknown_images = known
            images, labels = self.task.pixels(where), self.task.labels[where]
        else:
            images, labels = self.task.real_images(self.ipc, generator)
        if self.config.init == "noise":
            images = torch.rand(images.shape, generator=generator).to(images)
        with torch.no_grad():
            return self.layer(images).clone(), labels

    def _experts(self) -> Experts:
        """The experts at the epoch that labels come from."""
        last = self.trajectories.epochs
        epoch = last if self.rules.label_epoch < 0 else min(self.rules.label_epoch, last)
        weights = [
            functools.partial(self.trajectories.at, k, epoch) for k in range(len(self.trajectories))
        ]
        return Experts(self.network.eager(), self.layer, weights)

    def initial_logits(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Logits (n,K) that soft labels start from, or None for hard labels' own."""
        if not self.rules.expert_labels and not self.rules.assigned_labels:
            return None
        if not self.rules.correct_images:
            return self._experts().first_logits(images)
        confidence = self.config.label_confidence
        fallback = label_logits(labels, self.task.num_classes, confidence)
        return self._experts().mean_logits(images, labels, fallback)

    def _key(self) -> str:
        """What a checkpoint must agree with to be gone on from."""
        shape, seeds = identity(self.config), identity(self.seeds)
        text = json.dumps([shape, seeds, self.ipc, self.trajectories.key], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _steps(self, iteration: int, images: Tensor) -> tuple[int, int, list[Step]]:
        """Expert, epoch and student steps of an iteration."""
        config = self.config
        generator = self.seeds.generator("matching", iteration)
        expert = int(torch.randint(len(self.trajectories), (), generator=generator))
        low = self.rules.min_start_epoch
        high = self.rules.start_bound(iteration, config.start_epochs)
        epoch = low + int(torch.randint(high - low, (), generator=generator))
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

    def step(self, iteration: int) -> dict[str, Tensor]:
        """Move images and learning rate along the gradient of one match."""
        expert, epoch, steps = self._steps(iteration, self._learned.images)
        start = self.trajectories.at(expert, epoch)
        target = self.trajectories.at(expert, epoch + self.config.match_epochs)
        alpha = self._learned.alpha
        if self.rules.assigned_labels:
            with torch.no_grad():
                logits = self.network.eager()(target, self._learned.images)
            self._learned.assign(logits.softmax(1))
        result = self._engine.gradients(
            self._learned.images,
            self._learned.labels,
            alpha,
            start,
            self._outer(iteration, start, target),
            steps,
        )
        self._learned.step(result)
        self._reporter.work(self.config.student_steps, "student steps")
        values = {"loss": result.loss, "alpha": alpha}
        if not math.isinf(self.rules.loss_limit):
            values["moved"] = (result.loss <= self.rules.loss_limit).float()
        return values

    def state(self) -> dict[str, Tensor]:
        """What is learned, and the state of its optimisers."""
        return self._learned.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        images, labels = self.initial_images()
        logits = self.initial_logits(images, labels)
        classes = self.task.num_classes
        self._learned = Learned(self.config, images, labels, classes, state, self.rules, logits)

    def current(self) -> DistilledSet:
        """The set, in pixel space."""
        pixels = to_pixels(self.layer, self._learned.reported.detach())
        return DistilledSet(images=pixels, labels=self._learned.labels)

    def run(self, reporter: Reporter) -> DistilledSet:
        """Distil, from the last checkpoint if there is one.

        Raises:
            RunFailedError: images or loss became NaN or infinite.
        """
        config = self.config
        self.restore({})
        if self._unknown_images:
            reporter.note(
                f"no expert classifies {self._unknown_images} of the images that the set starts "
                "from correctly: random ones take their place; train the experts longer"
            )
        self._reporter = reporter
        self._engine = AdjointEngine(
            self.network, keep=config.keep_graphs, direct=self.rules.direct, note=reporter.note
        )
        made = iterate(
            self,
            self.task,
            reporter,
            title="matching",
            total=config.iterations,
            key=self._key(),
            checkpoint_seconds=config.checkpoint_seconds,
        )
        return dataclasses.replace(
            made,
            learning_rate=float(self._learned.alpha),
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

    def rules(self) -> Rules:
        """What the matching does otherwise than MTT's; MTT's unless a method says more."""
        return Rules()

    def parts(self, task: DistillTask) -> Sequence[Part]:
        """The experts.

        Raises:
            UsageError: a class has too few images for the set: said before anything is trained.
        """
        task.required_ipc()
        task = self.config.task(task)
        return ExpertStore(task, self.recipe(task)).parts(self.config.experts)

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        """Train one expert."""
        task = self.config.task(task)
        ExpertStore(task, self.recipe(task)).train(part, reporter)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Match the experts' trajectories."""
        own = self.config.task(task)
        remark = self.config.hybrid(own)
        if remark:
            reporter.note(remark)
        experts = ExpertStore(own, self.recipe(own)).load(self.config.experts)
        rules = self.rules()
        made = TrajectoryMatcher(self.config, own, experts, self.outer(own), rules).run(reporter)
        if own.preprocessing == task.preprocessing:
            return made
        return dataclasses.replace(made, preprocessing=own.preprocessing)

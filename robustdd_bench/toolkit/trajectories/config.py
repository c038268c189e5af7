"""Hyper-parameters that all trajectory methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistillTask
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.toolkit.trajectories.recipe import ExpertRecipe


@settings
class TrajectoryConfig:
    """Hyper-parameters of trajectory matching.

    Defaults: MTT's for CIFAR-10, 10 images a class, but for `preprocessing` (MTT: "zca") and for
    how alpha is learned: on CIFAR a hybrid that no paper used, which the presets are not.
    """

    ADDED: ClassVar[Mapping[str, str]] = {"expert_precision": "0.2.0"}
    """Later fields, with the version in which each came (see `robustdd_bench.identity`)."""

    experts: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Number of experts."""
    expert_lr: Annotated[float, Field(gt=0, le=1e38)] = 0.01
    """Learning rate of the experts (SGD)."""
    expert_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the experts."""
    expert_weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight decay of the experts."""
    expert_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Batch size of the experts."""
    expert_augmentation: str = "track"
    """Augmentation of the experts; "track": that of the track's students."""
    expert_precision: Literal["default", "float32", "tf32", "bfloat16"] = "default"
    """Arithmetic of the experts' training, their adversary's included: "default" (what torch is set
    to), "float32", "tf32" or "bfloat16"; only a GPU knows "tf32"."""
    student_steps: Annotated[int, Field(ge=1, le=100_000)] = 30
    """N: gradient steps of the student on the synthetic set."""
    match_epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    """M: epochs of the expert that those steps have to match."""
    start_epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    """T: a student starts at an expert's epoch 0..T-1."""
    student_batch: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Synthetic images in a student step; 0: all."""
    iterations: Annotated[int, Field(ge=0, le=10_000_000)] = 5000
    """Updates of the synthetic images."""
    image_optimiser: Literal["sgd", "adam"] = "sgd"
    """"sgd" (momentum `image_momentum`) or "adam"."""
    image_lr: Annotated[float, Field(gt=0, le=1e38)] = 100.0
    """Learning rate of the images, in the network's input space (normalised or whitened). 100 is
    MTT's for whitened images (ZCA): with `preprocessing` "track" on CIFAR it is a hybrid."""
    image_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the images' SGD."""
    alpha_init: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Student's learning rate at the start."""
    alpha_lr: Annotated[float, Field(ge=0, le=1e38)] = 0.01
    """Learning rate of alpha, or of log alpha; 0: it stays as it is."""
    alpha_space: Literal["log", "linear"] = "log"
    """"log": log alpha is learned, so steps are relative (ours); "linear": alpha (the paper)."""
    alpha_optimiser: Literal["adam", "sgd"] = "adam"
    """"adam" (ours) or "sgd" (the paper)."""
    alpha_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of alpha's SGD."""
    learn_labels: bool = False
    """Whether soft labels are learned beside the images; boards tell hard and soft labels apart."""
    label_lr: Annotated[float, Field(ge=0, le=1e38)] = 0.01
    """Learning rate of the labels' logits (Adam; ours)."""
    label_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Probability of its own class that a learned label starts from (ours)."""
    preprocessing: Literal["track", "none", "normalise", "zca"] = "track"
    """"track", or "none", "normalise" or "zca" in its place for experts, set and students."""
    init: Literal["real", "noise"] = "real"
    """"real": random training images; "noise": uniform noise."""
    checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    """A killed run loses at most about so many seconds of work."""
    keep_graphs: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Student steps whose graph is kept: more memory, less time, the same result."""

    def hybrid(self, task: DistillTask) -> str | None:
        """A line for the log where the default rate of images meets images it was not made for.

        Args:
            task: the task, behind the preprocessing that is asked for.
        """
        sgd_default = self.image_optimiser == "sgd" and self.image_lr == 100.0
        if not sgd_default or task.preprocessing.kind == "zca":
            return None
        return (
            "warning: image_lr 100 by SGD is MTT's for whitened images, and these are not "
            f"(preprocessing {task.preprocessing.kind!r}): a hybrid that no paper used; choose a "
            "--preset, or set preprocessing=zca or another image_lr"
        )

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
            precision=self.expert_precision,
        )

    def task(self, task: DistillTask) -> DistillTask:
        """The task with its networks behind the preprocessing that is asked for."""
        if self.preprocessing in ("track", task.preprocessing.kind):
            return task
        if self.preprocessing != "normalise":
            return task.behind(Preprocessing(self.preprocessing))
        mean, std = channel_statistics(task)
        return task.behind(Preprocessing("normalise", mean, std))


@settings
class FlatConfig(TrajectoryConfig):
    """Trajectory matching on flat experts, those of FTD (Du et al. 2023)."""

    rho: Annotated[float, Field(ge=0, le=1000)] = 0.01
    """Radius of the experts' ascent; 0: experts trained by plain gradient descent."""
    gsam_alpha: Annotated[float, Field(ge=0, le=1000)] = 0.3
    """Weight of the surrogate gap in the experts' training."""
    adaptive: bool = True
    """Whether the ascent is scaled by the weights' own sizes, as the published code does."""
    image_ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the average of the images, which is then the set; 0: the last images are."""

    def flat_recipe(self, task: DistillTask) -> ExpertRecipe:
        """Natural training of flat experts, only the epochs needed."""
        return dataclasses.replace(
            self.recipe(task),
            gsam_rho=self.rho,
            gsam_alpha=self.gsam_alpha,
            gsam_adaptive=self.adaptive,
        )


def channel_statistics(task: DistillTask) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the training images."""
    pixels = task.pixels()
    mean = pixels.mean((0, 2, 3))
    std = pixels.std((0, 2, 3), correction=0).clamp_min(1e-6)
    return tuple(mean.tolist()), tuple(std.tolist())

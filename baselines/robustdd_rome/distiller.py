"""ROME (Zhou et al. 2025, ICML): IDM with adversarial images in place of the real ones.

Networks of a queue (`robustdd_bench.toolkit.queues`) are trained on adversarial images, and the
features of synthetic images are matched to those of adversarial images x' of their class, by the
square of half the L1 distance ("total variation"). With acc_f the running accuracy of the network,
in per cent, on the adversarial batches that it was trained on, the loss of a class is

    alpha (1/2 sum_d |mean f_d(z) - mean f_d(x')|)^2 + (1 - alpha) w acc_f CE(g(z), class)

x' comes from projected gradient descent towards the next class, (class + 1) mod K. To be matched it
starts from an augmented image; to train on, from the image as it is. Images are mosaics, as IDM's.

Written from the paper and from what the published code computes (zhouzhengqd/ROME@2ceed90). What is
different here:

- The published code attacks normalised pixels and clamps them to [0,1], so that all that lies below
  the mean colour is cut off and eps is in units of the standard deviation. Here the attack moves
  pixels in [0,1] (of an augmented image that leaves it: in [0,1] extended to its own range).
  `space = "published"` does what the published code does; it is there for a study of that fault.
- The step of the published attack is 2/225 (sic) for an eps of 8/255; the default is that share.
- CIFAR-100's published code targets (class + 1) mod 10; the next of all K classes is meant here.
- The learning rate of images and deviations of the loop: `robustdd_bench.toolkit.queues.matching`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.adversarial import Adversary, check_eps, eps_of
from robustdd_bench.toolkit.inputspace import to_pixels
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.queues.config import QueueConfig
from robustdd_bench.toolkit.queues.matching import (
    Attack,
    QueueObjective,
    distil_over_queue,
    queue_operations,
)


def half_l1_squared(made_KF: Tensor, real_KF: Tensor) -> Tensor:
    """The square of half the L1 distance between class means of features, (K,)."""
    return (0.5 * (made_KF - real_KF).abs().sum(1)).square()


def towards_next_class(adversary: Adversary, classes: int, *, published: bool) -> Attack:
    """Images that a network takes for the class after theirs.

    Args:
        adversary: its ball is in pixel units, or if `published` in those of the input space, which
            it then clamps to [0,1]; `extend_box` matters in pixel space alone.
        classes: K; the class after the last is the first.
        published: attack the network's input in place of pixels.

    Returns:
        A function of layer, network, images in the input space, labels and generator.
    """

    def attack(
        layer: nn.Module, body: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> Tensor:
        target = (y + 1) % classes

        def likeness(point: Tensor) -> Tensor:
            logits = body(point if published else layer(point))
            return -cross_entropy(logits, target, reduction="sum")

        if published:
            return adversary.maximise(likeness, x, generator).detach()
        found = adversary.maximise(likeness, to_pixels(layer, x), generator)
        moved: Tensor = layer(found.detach())
        return moved

    return attack


class ROME(Distiller):
    """Matching features of adversarial images, over adversarially trained networks."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(QueueConfig):
        """ROME's values, as printed for CIFAR-10 at 10 images per class; see `lr_img`."""

        alpha: Annotated[float, Field(ge=0, le=1)] = 0.2
        """Weight of the matched features; the cross-entropy has 1 - alpha, times `ce_weight` and
        the network's accuracy in per cent."""
        eps: Annotated[float, Field(ge=-1, le=100)] = -1.0
        """Radius of the adversary, in pixel units; -1: the track's headline eps; 0: no attack."""
        attack_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
        """Steps of the adversary."""
        attack_step_size: Annotated[float, Field(gt=0, le=1000)] = 0.2833333333333333
        """Its step size as a share of eps; the published one is 2/225 of 8/255."""
        space: Literal["pixels", "published"] = "pixels"
        """Attack pixels in [0,1]. "published": for a study alone. It repeats the fault of the
        published code, which attacks normalised pixels and clamps these to [0,1]: whatever is
        darker than the mean colour is cut off, and eps counts in standard deviations."""

        @model_validator(mode="after")
        def _eps_of_the_track(self) -> Self:
            check_eps(self.eps)
            return self

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    @classmethod
    def quick_config(cls) -> ROME.Config:
        """A few steps, saved after each; for `robustdd check-plugin`."""
        return cls.Config(
            iterations=4,
            fresh_every=2,
            networks_max=4,
            train_steps=1,
            attack_steps=2,
            batch_real=16,
            train_batch=16,
            checkpoint_seconds=0.0,
        )

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Optimise the images; resumes from `task.work_dir`.

        Raises:
            UsageError: a class has fewer images than are asked for, or tiles do not fit.
            RunFailedError: the images or a network diverged.
        """
        config: ROME.Config = self.config
        return distil_over_queue(task, reporter, config, self.objective(task), "rome")

    def objective(self, task: DistillTask) -> QueueObjective:
        """What is matched on a task."""
        config: ROME.Config = self.config
        published = config.space == "published"
        eps = eps_of(config.eps, task.threat)
        adversary = Adversary(
            threat=ThreatModel(task.threat.norm, eps),
            steps=config.attack_steps,
            step_size=config.attack_step_size * eps,
            extend_box=not published,
        )
        attack = towards_next_class(adversary, task.num_classes, published=published)
        return QueueObjective(
            distance=half_l1_squared,
            feature_weight=config.alpha,
            ce_weight=(1 - config.alpha) * config.ce_weight,
            attack=attack if eps > 0 else None,
        )

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        config: ROME.Config = self.config
        return queue_operations(config, config.attack_steps if config.eps else 0, facts)

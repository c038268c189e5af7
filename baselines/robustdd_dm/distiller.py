"""Distribution matching (Zhao and Bilen 2023, "Dataset Condensation with Distribution Matching").

Each iteration draws a new random network f, never trained, and takes one step of SGD with momentum
on eq. 4:

    sum_k | mean f(A_k(real batch of class k)) - mean f(A_k(z_k)) |^2

where f are the features before the last linear layer, A_k is one siamese augmentation per class and
step, and z are the synthetic images in the network's input space, after the preprocessing layer,
where the paper's learning rate holds. Only first-order gradients are needed, and the sum over
classes lets many classes pass in one forward: that is exact, for any number of them.

On a GPU the gradient of the classes that pass together is one captured step
(`toolkit.fast.capture`).
With 10 classes and all families some 510 of its 560 kernels are the augmentation's, and which these
are depends on what was drawn. So the captured step applies every family to every image and chooses
(`toolkit.dsa.apply_table`): 670 kernels, always the same, in one graph. Graphs of single classes,
one a family, would launch more of them, in three replays a class. Steps that are not captured apply
what was drawn and no more.

Deviation: networks with batch norm use the joint batch's statistics (of all classes at once).

Shapes: K classes, S images per class, R real images, F features, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.augment import GroupedAugment, draw_grouped
from robustdd_bench.toolkit.batches import ClassSampler
from robustdd_bench.toolkit.distances import class_means, mean_distance
from robustdd_bench.toolkit.dsa import (
    STRATEGY,
    Augmentation,
)
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.inputspace import features, starting_images, to_pixels
from robustdd_bench.toolkit.loop import Distillation, iterate
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.random_networks import RedrawnNetwork

_CHECK_EVERY = 100


class DM(Distiller):
    """Distribution matching."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config:
        """The paper's values, as printed; see `lr_img` for CIFAR."""

        iterations: Annotated[int, Field(ge=1, le=10_000_000)] = 20000
        """Networks drawn, and steps of the images."""
        init: Literal["noise", "real"] = "real"
        """Start from N(0,1) in the network's input space, or from random real images."""
        augmentation: str = STRATEGY
        """Strategy; flips are left out where a mirrored image changes its label."""
        lr_img: Annotated[float, Field(gt=0, le=1e38)] = 1.0
        """Learning rate of the images, in the network's input space. The paper's holds for CIFAR
        pixels divided by std .2023, .1994, .2010; the preset `paper` converts it to the track's."""
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """Momentum of the images."""
        batch_real: Annotated[int, Field(ge=1, le=1_000_000)] = 256
        """Real images of each class in a step, or all of them if there are fewer."""
        classes_at_once: Annotated[int, Field(ge=1, le=100_000)] = 10
        """Classes that pass through the network together; changes memory and speed only."""
        checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 10.0
        """How much work, in seconds, a killed run may lose."""

        @model_validator(mode="after")
        def _known_strategy(self) -> Self:
            Augmentation.parse(self.augmentation)
            return self

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    @classmethod
    def quick_config(cls) -> DM.Config:
        """A few steps, saved after each; for `robustdd check-plugin`."""
        return cls.Config(iterations=4, checkpoint_seconds=0.0)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Optimise the images; resumes from `task.work_dir`.

        Raises:
            UsageError: a class has fewer images than are asked for.
            RunFailedError: the images diverged.
        """
        config = self.config
        ipc = task.required_ipc()
        augmentation = Augmentation.parse(config.augmentation)
        if not task.allow_flip:
            augmentation = augmentation.without("flip")
        # As the first edition wrote it, whose checkpoints are resumed.
        shape = str(replace(config, checkpoint_seconds=0)).replace("seconds=0.0", "seconds=0")
        return iterate(
            _Matching(task, config, augmentation, ipc, reporter),
            task,
            reporter,
            title="dm",
            total=config.iterations,
            key=f"dm ipc={ipc} {task.seeds} {augmentation} {shape}",
            checkpoint_seconds=config.checkpoint_seconds,
            check_every=_CHECK_EVERY,
        )

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        config: DM.Config = self.config
        real = facts.classes * min(config.batch_real, facts.train // facts.classes)
        step = real * facts.network.forward + facts.images * facts.input.pixels
        return MakingOperations(distill=config.iterations * step)


class _Matching(Distillation):
    """The synthetic images z, their velocity, and the gradient of one random network after another.

    Every tensor of the gradient stays where it is, so that it can be captured and replayed.
    """

    def __init__(
        self,
        task: DistillTask,
        config: DM.Config,
        augmentation: Augmentation,
        ipc: int,
        reporter: Reporter,
    ) -> None:
        network = RedrawnNetwork(task, task.seeds.seed("network", 0), note=reporter.note)
        network.body.requires_grad_(False)
        self._task, self._config, self._network = task, config, network
        self._augmentation = augmentation
        self._labels = torch.arange(task.num_classes, device=task.device).repeat_interleave(ipc)
        self._images = z = starting_images(task, ipc, network.layer, config.init)
        self._velocity = torch.zeros_like(z)
        self._sampler = ClassSampler(task.class_indices())
        self._members = torch.arange(len(z), device=z.device).view(task.num_classes, -1)
        self._z, self._gradient = torch.empty_like(z), torch.zeros_like(z)
        self._loss = torch.zeros((), device=z.device)
        self._inputs = Inputs(z.device)
        changed = [*network.body.buffers(), self._gradient, self._loss]
        self._replayer = Replayer(z.device, changed, note=reporter.note)

    def step(self, iteration: int) -> dict[str, Tensor]:
        """One step of SGD with momentum; reports the loss per class."""
        loss, gradient = self.gradient(iteration, self._images)
        self._velocity = self._config.momentum * self._velocity + gradient
        self._images = self._images - self._config.lr_img * self._velocity
        return {"loss": loss}

    def state(self) -> dict[str, Tensor]:
        """Images and velocity."""
        return {"images": self._images, "velocity": self._velocity}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._images, self._velocity = state["images"], state["velocity"]

    def current(self) -> DistilledSet:
        """The set, in pixel space."""
        pixels = to_pixels(self._network.layer, self._images)
        return DistilledSet(images=pixels, labels=self._labels)

    def gradient(self, iteration: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one random network, per class, and the sum's gradient in all images.

        The gradient holds until the next call.
        """
        seeds, classes = self._task.seeds, self._task.num_classes
        self._network.draw(seeds.seed("network", iteration))
        source = seeds.generator("real", iteration)
        augment = seeds.generator("augmentation", iteration)
        self._z.copy_(z)
        self._loss.zero_()
        for first in range(0, classes, self._config.classes_at_once):
            last = min(first + self._config.classes_at_once, classes)
            self._add(range(first, last), source, augment)
        return self._loss / classes, self._gradient

    def _add(self, classes: range, source: torch.Generator, generator: torch.Generator) -> None:
        """Add the loss of some classes, and put in place the gradient of their images."""
        index, sizes = self._sampler.draw(classes, self._config.batch_real, source)
        real = self._inputs.put("real", index)
        made = self._inputs.put("made", self._members[classes.start : classes.stop].flatten())
        inputs = self._inputs if self._replayer.static else None
        shape = self._z.shape[2:]
        augment = draw_grouped(self._augmentation, len(classes), shape, generator, inputs)

        def step() -> None:
            x = self._network.layer(self._task.pixels(real))
            loss, gradient = matching_gradient(self._network.body, x, sizes, self._z[made], augment)
            self._loss.add_(loss)
            self._gradient.index_copy_(0, made, gradient)

        self._replayer.run(tuple(sizes), step)


def matching_gradient(
    body: nn.Module,
    real_BCHW: Tensor,
    sizes: Sequence[int],
    z_BCHW: Tensor,
    augment: GroupedAugment,
) -> tuple[Tensor, Tensor]:
    """The loss summed over some classes, and its gradient in their synthetic images.

    Args:
        body: the random network after its preprocessing layer, its parameters frozen.
        real_BCHW: real images in the network's input space, class after class.
        sizes: real images of each class.
        z_BCHW: synthetic images, the same number of each class, class after class.
        augment: given images class after class, and how many there are of each, augments them
            with the siamese augmentation of each class.

    Returns:
        The loss (a scalar, detached) and its gradient, of the shape of z.
    """
    z = z_BCHW.detach().requires_grad_()
    made_sizes = [len(z) // len(sizes)] * len(sizes)
    with torch.no_grad():
        target = class_means(features(body, augment(real_BCHW, sizes)), sizes)
    made = features(body, augment(z, made_sizes))
    loss = mean_distance(target, class_means(made, made_sizes))
    return loss.detach(), torch.autograd.grad(loss, z)[0]

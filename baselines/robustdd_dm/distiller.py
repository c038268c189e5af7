"""Distribution matching (Zhao and Bilen 2023, "Dataset Condensation with Distribution Matching").

Each iteration draws a new random network f, never trained, and takes one step of SGD with momentum
on eq. 4:

    sum_k | mean f(A_k(real batch of class k)) - mean f(A_k(z_k)) |^2

where f are the features before the last linear layer, A_k is one siamese augmentation per class and
step, and z are the synthetic images in the network's input space, after the preprocessing layer,
where the paper's learning rate holds. Only first-order gradients are needed, and the sum over
classes lets many classes pass in one forward: that is exact, for any number of them.

Deviation: networks with batch norm use the joint batch's statistics (of all classes at once).

Shapes: K classes, S images per class, R real images, F features, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.batches import ClassSampler
from robustdd_bench.toolkit.checkpoint import Checkpoint, require_finite
from robustdd_bench.toolkit.distances import class_means, mean_distance
from robustdd_bench.toolkit.dsa import (
    STRATEGY,
    Augmentation,
    AugmentationParams,
    apply_grouped,
)
from robustdd_bench.toolkit.inputspace import features, split_network, starting_images, to_pixels
from robustdd_bench.toolkit.snapshots import show_images

_CHECK_EVERY = 100


class DM(Distiller):
    """Distribution matching."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """The paper's values."""

        iterations: int = 20000
        """Networks drawn, and steps of the images."""
        init: Literal["noise", "real"] = "real"
        """Start from N(0,1) in the network's input space, or from random real images."""
        augmentation: str = STRATEGY
        """Strategy; flips are left out where a mirrored image changes its label."""
        lr_img: float = 1.0
        """Learning rate of the images, in the network's input space."""
        momentum: float = 0.5
        """Momentum of the images."""
        batch_real: int = 256
        """Real images of each class in a step, or all of them if there are fewer."""
        classes_at_once: int = 10
        """Classes that pass through the network together; changes memory and speed only."""
        checkpoint_seconds: float = 10.0
        """How much work, in seconds, a killed run may lose."""

        def __post_init__(self) -> None:
            if self.iterations < 1:
                raise ValueError(f"iterations must be at least 1, not {self.iterations}")
            if self.init not in ("noise", "real"):
                raise ValueError(f"init must be 'noise' or 'real', not {self.init!r}")
            if not self.lr_img > 0:
                raise ValueError(f"lr_img must be positive, not {self.lr_img}")
            if not 0 <= self.momentum < 1:
                raise ValueError(f"momentum must lie in [0,1), not {self.momentum}")
            if self.batch_real < 1 or self.classes_at_once < 1:
                raise ValueError("batch_real and classes_at_once must be at least 1")
            if not self.checkpoint_seconds >= 0:
                raise ValueError("checkpoint_seconds must be at least 0")
            Augmentation.parse(self.augmentation)

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
        config, seeds = self.config, task.seeds
        ipc = task.required_ipc()
        augmentation = Augmentation.parse(config.augmentation)
        if not task.allow_flip:
            augmentation = augmentation.without("flip")
        key = f"dm ipc={ipc} {seeds} {augmentation} {replace(config, checkpoint_seconds=0)}"
        checkpoint = Checkpoint(task.work_dir / "dm.safetensors", config.checkpoint_seconds, key)
        layer, _ = split_network(task.network(seeds.seed("network", 0)))
        sampler = ClassSampler(task.class_indices())
        labels = torch.arange(task.num_classes, device=task.device).repeat_interleave(ipc)
        saved = checkpoint.load(task.device)
        if saved is None:
            done, z = 0, starting_images(task, ipc, layer, config.init)
            velocity = torch.zeros_like(z)
        else:
            done, z, velocity = saved[0], saved[1]["images"], saved[1]["velocity"]

        def current() -> DistilledSet:
            return DistilledSet(images=to_pixels(layer, z), labels=labels)

        with reporter.progress("dm", config.iterations) as bar:
            bar.advance(done)
            if done == 0:
                show_images(reporter, 0, config.iterations, current)
            for iteration in range(done, config.iterations):
                loss, gradient = self._gradient(task, augmentation, sampler, iteration, z)
                velocity = config.momentum * velocity + gradient
                z = z - config.lr_img * velocity
                finished = iteration + 1
                reporter.metrics(finished, loss=loss)
                if finished % _CHECK_EVERY == 0 or finished == config.iterations:
                    require_finite(finished, images=z)
                show_images(reporter, finished, config.iterations, current)
                checkpoint.maybe_save(finished, {"images": z, "velocity": velocity})
                bar.advance()
        return current()

    def _gradient(
        self,
        task: DistillTask,
        augmentation: Augmentation,
        sampler: ClassSampler,
        iteration: int,
        z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one random network, per class, and the sum's gradient in all images."""
        seeds, ipc = task.seeds, len(z) // task.num_classes
        layer, body = split_network(task.network(seeds.seed("network", iteration)))
        body.train().requires_grad_(False)
        source = seeds.generator("real", iteration)
        augment = seeds.generator("augmentation", iteration)
        total, gradients = torch.zeros((), device=task.device), []
        for first in range(0, task.num_classes, self.config.classes_at_once):
            last = min(first + self.config.classes_at_once, task.num_classes)
            classes = range(first, last)
            index, sizes = sampler.draw(classes, self.config.batch_real, source)
            drawn = [augmentation.draw(1, z.shape[2:], augment, siamese=True) for _ in classes]
            real = layer(task.pixels(index))
            part, gradient = matching_gradient(
                body, real, sizes, z[first * ipc : last * ipc], drawn
            )
            total = total + part
            gradients.append(gradient)
        return total / task.num_classes, torch.cat(gradients)


def matching_gradient(
    body: nn.Module,
    real_BCHW: Tensor,
    sizes: Sequence[int],
    z_BCHW: Tensor,
    drawn: Sequence[AugmentationParams],
) -> tuple[Tensor, Tensor]:
    """The loss summed over some classes, and its gradient in their synthetic images.

    Args:
        body: the random network after its preprocessing layer, its parameters frozen.
        real_BCHW: real images in the network's input space, class after class.
        sizes: real images of each class.
        z_BCHW: synthetic images, the same number of each class, class after class.
        drawn: the siamese augmentation of each class.

    Returns:
        The loss (a scalar, detached) and its gradient, of the shape of z.
    """
    z = z_BCHW.detach().requires_grad_()
    made_sizes = [len(z) // len(sizes)] * len(sizes)
    with torch.no_grad():
        target = class_means(features(body, apply_grouped(real_BCHW, sizes, drawn)), sizes)
    made = features(body, apply_grouped(z, made_sizes, drawn))
    loss = mean_distance(target, class_means(made, made_sizes))
    return loss.detach(), torch.autograd.grad(loss, z)[0]

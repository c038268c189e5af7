"""Recovery: images whose features have the statistics that a teacher's batch norm has seen.

SRe2L (Yin et al. 2023) starts from noise and descends

    CE(f(x), y) + r sum_l w_l (|mean_l(x) - running_mean_l| + |var_l(x) - running_var_l|)

over the batch-norm layers l, with Euclidean norms over channels, w = 10 for the first layer and 1
for the others, mean and biased variance over images and places of a batch. A batch is one image of
each class, so that the images of different indices do not see each other. Adam with betas .5 and
.9, a cosine from `lr` to 0; in each step the batch is shifted around its edges by up to `jitter`
pixels, and, if `crop` is below 1, cropped and resized as torchvision's RandomResizedCrop does and
mirrored. Nothing is optimised outside of the range of valid pixels: images are clipped to it.

Shapes: K classes, C channels of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, DistillTask
from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.teachers import Teacher
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.inputspace import split_network, to_pixels
from robustdd_bench.toolkit.loop import Distillation
from robustdd_bench.toolkit.teachers.config import StoredTeacherConfig

_BETAS = (0.5, 0.9)
_EPS = 1e-8
FIRST_LAYER = 10.0
"""Weight of the first batch-norm layer."""
RATIO = (3 / 4, 4 / 3)
"""Range of width by height of torchvision's RandomResizedCrop."""


@settings
class RecoveryConfig(StoredTeacherConfig):
    """Teacher, and recovery of the images from it."""

    iterations: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Steps of the images."""
    image_lr: Annotated[float, Field(gt=0, le=1e6)] = 0.25
    """Learning rate of Adam at the start, in the network's input space."""
    statistics_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    """r: weight of the distance to the running statistics."""
    jitter: Annotated[int, Field(ge=0, le=1000)] = 4
    """Largest shift, in pixels."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest share of the area that a random crop keeps; 1: no crops and no flips."""


class Statistics:
    """What batch-norm layers are given in a forward pass, against what they have seen.

    Args:
        body: a network in eval mode.

    Raises:
        UsageError: the network has no batch norm.
    """

    def __init__(self, body: nn.Module) -> None:
        self._layers = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
        if not self._layers:
            raise UsageError(
                "the teacher has no batch norm whose statistics could be matched; choose a network "
                'that has, such as teacher="convnet" or teacher="resnet18-bn"'
            )
        self._found: list[Tensor] = []
        self._hooks = [layer.register_forward_pre_hook(self._look) for layer in self._layers]

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        self._found.append(
            (layer.running_var - variance).norm() + (layer.running_mean - mean).norm()
        )

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> Tensor:
        """The weighted distance of the last forward pass, a scalar."""
        found, self._found = self._found, []
        weights = [FIRST_LAYER] + [1.0] * (len(found) - 1)
        return torch.stack([w * d for w, d in zip(weights, found, strict=True)]).sum()


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def __call__(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """The rectangle of images (B,C,H,W), resized to (B,C,*size); bilinear, with antialias."""
        part = x[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return F.interpolate(
            part, size=list(size), mode="bilinear", align_corners=False, antialias=True
        )


def random_crop(
    shape_HW: Sequence[int],
    smallest: float,
    source: torch.Generator,
    ratio: tuple[float, float] = RATIO,
) -> Crop:
    """A crop as torchvision's RandomResizedCrop draws it.

    Args:
        shape_HW: height and width of the images.
        smallest: smallest share of the area.
        source: a CPU generator.
        ratio: range of width by height.
    """
    height, width = shape_HW
    for _ in range(10):
        draws = torch.rand(4, generator=source, dtype=torch.float64).tolist()
        area = height * width * (smallest + (1 - smallest) * draws[0])
        low, high = (math.log(bound) for bound in ratio)
        wide = math.exp(low + (high - low) * draws[1])
        h, w = round(math.sqrt(area / wide)), round(math.sqrt(area * wide))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1))
            return Crop(top, left, h, w)
    return Crop(0, 0, height, width)


def jittered(x: Tensor, config: RecoveryConfig, source: torch.Generator, flip: bool) -> Tensor:
    """The batch (B,C,H,W) as one step sees it: cropped if asked for, and shifted.

    Args:
        x: images.
        config: how much.
        source: a CPU generator.
        flip: whether mirrored images keep their label.
    """
    if config.crop < 1:
        part = random_crop(x.shape[-2:], config.crop, source)(x, x.shape[-2:])
        mirror = flip and bool(torch.rand(1, generator=source) < 0.5)
        x = part.flip(3) if mirror else part
    shift = torch.randint(0, config.jitter + 1, (2,), generator=source).tolist()
    return torch.roll(x, shifts=shift, dims=(2, 3))


class Recovery(Distillation):
    """All images of the set, of which each step moves those of every index.

    Args:
        task: the task.
        config: of the recovery.
        ipc: images of each class.
        network: the teacher, pixels to logits, in eval mode and frozen.
        teacher: what is stored with the set.
        seeds: of noise, jitter and crops.
    """

    def __init__(
        self,
        task: DistillTask,
        config: RecoveryConfig,
        ipc: int,
        network: nn.Module,
        teacher: Teacher | None,
        seeds: Seeds,
    ) -> None:
        self._task, self._config, self._ipc, self._seeds = task, config, ipc, seeds
        self._layer, self._body = split_network(network)
        self._teacher = teacher
        shape = task.images.shape[1:]
        # Index by index, each with one image of every class, as they are recovered.
        self._z = torch.cat(
            [
                torch.randn((task.num_classes, *shape), generator=seeds.generator("noise", index))
                for index in range(ipc)
            ]
        ).to(task.device)
        self._first, self._second = torch.zeros_like(self._z), torch.zeros_like(self._z)
        self._labels = torch.arange(task.num_classes, device=task.device)
        edges = torch.stack([torch.zeros(shape), torch.ones(shape)]).to(task.device)
        with torch.no_grad():
            limits = self._layer(edges)
        # Of a layer that mixes pixels there is no range of valid inputs to clip to.
        self._limits = None if task.preprocessing.kind == "zca" else (limits[0], limits[1])

    def step(self, iteration: int) -> Mapping[str, float | Tensor]:
        """One step of Adam for the images of every index."""
        config, total = self._config, self._config.iterations
        rate = config.image_lr * 0.5 * (1 + math.cos(math.pi * iteration / total))
        losses, distances, classes = [], [], self._task.num_classes
        with Statistics(self._body) as statistics:
            for index in range(self._ipc):
                where = slice(index * classes, (index + 1) * classes)
                source = self._seeds.generator("jitter", index, iteration)
                leaf = self._z[where].detach().requires_grad_()
                seen = jittered(leaf, config, source, self._task.allow_flip)
                loss = F.cross_entropy(self._body(seen), self._labels)
                distance = statistics.take()
                (gradient,) = torch.autograd.grad(loss + config.statistics_weight * distance, leaf)
                self._descend(where, gradient, rate, iteration + 1)
                losses.append(loss.detach())
                distances.append(distance.detach())
        return {"loss": torch.stack(losses).mean(), "statistics": torch.stack(distances).mean()}

    def _descend(self, where: slice, gradient: Tensor, rate: float, step: int) -> None:
        """Adam (Kingma and Ba 2015), and the clip to valid pixels."""
        first, second, z = self._first[where], self._second[where], self._z[where]
        first.mul_(_BETAS[0]).add_(gradient, alpha=1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        corrected = (second / (1 - _BETAS[1] ** step)).sqrt().add_(_EPS)
        z.addcdiv_(first, corrected, value=-rate / (1 - _BETAS[0] ** step))
        if self._limits is not None:
            z.clamp_(*self._limits)

    def state(self) -> Mapping[str, Tensor]:
        """Images and moments."""
        return {"images": self._z, "first": self._first, "second": self._second}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._z, self._first, self._second = state["images"], state["first"], state["second"]

    def current(self) -> DistilledSet:
        """The set, in pixel space, ordered by class."""
        classes = self._task.num_classes
        z = self._z.view(self._ipc, classes, *self._z.shape[1:]).transpose(0, 1).flatten(0, 1)
        return DistilledSet(
            images=to_pixels(self._layer, z),
            labels=self._labels.repeat_interleave(self._ipc),
            teacher=self._teacher,
        )

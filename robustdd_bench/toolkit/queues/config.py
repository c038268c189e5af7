"""What methods that match over a queue of networks are configured by."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from robustdd_bench.config import settings
from robustdd_bench.toolkit.dsa import STRATEGY, Augmentation


@settings
class QueueConfig:
    """IDM's values, as printed for CIFAR-10 at 10 images per class; see `lr_img`."""

    iterations: Annotated[int, Field(ge=1, le=10_000_000)] = 20000
    """Steps of the images of every class."""
    mosaic: Annotated[int, Field(ge=1, le=64)] = 2
    """Tiles a side of each stored image: students train on mosaic^2 images for each. 1: none."""
    init: Literal["noise", "real"] = "real"
    """Start from random real images (of mosaics, small ones), or from N(0,1)."""
    augmentation: str = STRATEGY
    """Strategy; flips are left out where a mirrored image changes its label."""
    lr_img: Annotated[float, Field(gt=0, le=1e38)] = 0.2
    """Learning rate of the images, in the network's input space. The paper's holds for CIFAR
    pixels divided by std .2023, .1994, .2010; the preset `paper` converts it to the track's."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the images, which also acts while other classes take their steps."""
    batch_real: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Real images of each class in a step, or all of them if there are fewer."""
    ce_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    """Weight of the cross-entropy, which also has the network's accuracy in per cent as a factor:
    .5 at 60 % weighs 30."""
    networks_start: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Networks in the queue before the first iteration."""
    networks_max: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Networks in the queue at most. Each is kept with its momentum: a hundred ConvNets of 320,010
    weights take 256 MB on the device and in a checkpoint."""
    fresh_every: Annotated[int, Field(ge=1, le=10_000_000)] = 30
    """A fresh network comes every so many iterations, and the oldest goes if the queue is full."""
    train_networks: Annotated[int, Field(ge=0, le=10_000)] = 2
    """Networks of the queue that are trained in an iteration."""
    train_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Steps that each of them takes."""
    train_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Real images in such a step."""
    lr_net: Annotated[float, Field(gt=0, le=1e6)] = 0.01
    """Learning rate of the networks."""
    momentum_net: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the networks."""
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 5e-4
    """Weight decay of the networks."""
    meter_every: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """After so many iterations accuracies are counted anew, as the published code does when it
    evaluates; a network counts as 0 % until it is trained again."""
    classes_at_once: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Classes that pass through the network together; changes memory and speed, and the draws of an
    attack's random starts."""
    checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """How much work, in seconds, a killed run may lose."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        Augmentation.parse(self.augmentation)
        if self.networks_start > self.networks_max:
            raise ValueError(
                f"networks_start {self.networks_start} is more than networks_max "
                f"{self.networks_max}"
            )
        return self

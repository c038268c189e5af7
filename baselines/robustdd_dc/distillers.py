"""The distillers `dc` and `dsa`: one recipe, two configurations.

Zhao, Mopuri and Bilen 2021, "Dataset Condensation with Gradient Matching"; Zhao and Bilen 2021,
"Dataset Condensation with Differentiable Siamese Augmentation".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.dsa import STRATEGY, Augmentation
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_dc.matching import Recipe, match_gradients


class DC(Distiller):
    """Gradient matching from noise, without augmentation."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation_dc.bib")

    @settings
    class Config:
        """The paper's values, as printed; see `lr_img` for CIFAR."""

        iterations: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
        """Networks drawn, one after the other."""
        outer: Annotated[int, Field(ge=0, le=100_000)] = 0
        """Image steps per network; 0: the paper's number for these images per class."""
        inner: Annotated[int, Field(ge=0, le=100_000)] = 0
        """Epochs of training on the synthetic set between image steps; 0: the paper's number."""
        init: Literal["noise", "real"] = "noise"
        """Start from N(0,1) in the network's input space, or from random real images."""
        lr_img: Annotated[float, Field(gt=0, le=1e38)] = 0.1
        """Learning rate of the images, in the network's input space. The paper's holds for CIFAR
        pixels divided by std .2023, .1994, .2010; the preset `paper` converts it to the track's."""
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """Momentum of the images."""
        lr_net: Annotated[float, Field(gt=0, le=1e38)] = 0.01
        """Learning rate of the network between image steps (plain SGD)."""
        batch_real: Annotated[int, Field(ge=1, le=1_000_000)] = 256
        """Real images of each class in a step, or all of them if there are fewer."""
        batch_train: Annotated[int, Field(ge=1, le=1_000_000)] = 256
        """Synthetic images in a step of the network."""
        checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 10.0
        """How much work, in seconds, a killed run may lose."""

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_dc.toml")

    @classmethod
    def quick_config(cls) -> DC.Config:
        """A few steps, saved after each; for `robustdd check-plugin`."""
        return cls.Config(iterations=3, outer=2, inner=1, checkpoint_seconds=0.0)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Optimise the images; resumes from `task.work_dir`."""
        return match_gradients(task, reporter, _recipe(self.config, "none"), "dc")

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        return _operations(self.config, facts)


class DSA(Distiller):
    """Gradient matching from real images, with one siamese augmentation per class and step."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation_dsa.bib")

    @settings
    class Config:
        """The paper's values, as printed; see `lr_img` for CIFAR."""

        iterations: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
        """Networks drawn, one after the other."""
        outer: Annotated[int, Field(ge=0, le=100_000)] = 0
        """Image steps per network; 0: the paper's number for these images per class."""
        inner: Annotated[int, Field(ge=0, le=100_000)] = 0
        """Epochs of training on the synthetic set between image steps; 0: the paper's number."""
        init: Literal["noise", "real"] = "real"
        """Start from N(0,1) in the network's input space, or from random real images."""
        augmentation: str = STRATEGY
        """Strategy; flips are left out where a mirrored image changes its label."""
        lr_img: Annotated[float, Field(gt=0, le=1e38)] = 0.1
        """Learning rate of the images, in the network's input space. The paper's holds for CIFAR
        pixels divided by std .2023, .1994, .2010; the preset `paper` converts it to the track's."""
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """Momentum of the images."""
        lr_net: Annotated[float, Field(gt=0, le=1e38)] = 0.01
        """Learning rate of the network between image steps (plain SGD)."""
        batch_real: Annotated[int, Field(ge=1, le=1_000_000)] = 256
        """Real images of each class in a step, or all of them if there are fewer."""
        batch_train: Annotated[int, Field(ge=1, le=1_000_000)] = 256
        """Synthetic images in a step of the network."""
        checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 10.0
        """How much work, in seconds, a killed run may lose."""

        @model_validator(mode="after")
        def _known_strategy(self) -> Self:
            Augmentation.parse(self.augmentation)
            return self

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_dsa.toml")

    @classmethod
    def quick_config(cls) -> DSA.Config:
        """A few steps, saved after each; for `robustdd check-plugin`."""
        return cls.Config(iterations=3, outer=2, inner=1, checkpoint_seconds=0.0)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Optimise the images; resumes from `task.work_dir`."""
        recipe = _recipe(self.config, self.config.augmentation)
        return match_gradients(task, reporter, recipe, "dsa")

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        return _operations(self.config, facts)


def _recipe(config: DC.Config | DSA.Config, augmentation: str) -> Recipe:
    return Recipe(
        iterations=config.iterations,
        outer=config.outer,
        inner=config.inner,
        init=config.init,
        augmentation=Augmentation.parse(augmentation),
        lr_img=config.lr_img,
        momentum=config.momentum,
        lr_net=config.lr_net,
        batch_real=config.batch_real,
        batch_train=config.batch_train,
        checkpoint_seconds=config.checkpoint_seconds,
    )


def _operations(config: DC.Config | DSA.Config, facts: Facts) -> MakingOperations:
    """Gradients of real and synthetic batches, image steps, and training between them."""
    outer, inner = _recipe(config, "none").loops(facts.ipc)
    real = facts.classes * min(config.batch_real, facts.train // facts.classes)
    layer = facts.network.forward - facts.input.forward
    matching = real * (facts.input.weights + layer) + facts.images * facts.input.matched
    training = inner * facts.images * facts.input.weights
    return MakingOperations(distill=config.iterations * (outer * matching + (outer - 1) * training))

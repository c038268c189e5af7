"""DATM (Guo et al. 2024, arXiv 2310.05773): match trajectories no harder than the set is large.

Late epochs of an expert teach hard patterns, which help large sets and hurt small ones. So
students start in a window of epochs, `min_start_epoch` to `start_epochs`, that is chosen by the
size of the set; its upper bound grows from `first_start_epochs`, linearly, within
`growth_iterations`. Labels are soft: they start from experts' logits on images that experts
classify correctly (`robustdd_bench.toolkit.trajectories.starting`) and are learned, y = softmax(v),
in the soft cross-entropy of the student's steps, v by SGD of its own. Experts are FTD's, trained by
GSAM. An iteration whose loss is above `loss_limit` moves nothing.

With `learn_labels` off the set has hard labels, and what remains is the window and the choice of
images. The set has soft labels otherwise, and is ranked among sets with soft labels.

Deviations from the public code (NUS-HPC-AI-Lab/DATM at 97ae510):

- Its settings have an `ema_decay`, and its distillation never reads it: there is no average of the
  images, and `image_ema` is 0 here. The paper may differ.
- It reports the best of many evaluations on the test set; here the last iterate is the set.
- What happens if the experts know too few images of a class is said in the module above.
- With `image_optimiser` "adam" (ours) an iteration that moves nothing still counts in Adam's
  correction of its bias.
- The exact gradient takes one step's memory, and alpha stays in [1e-6, 1], as in MTT here.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.trajectories.config import FlatConfig
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe
from robustdd_bench.toolkit.trajectories.matching import OuterFactory, TrajectoryDistiller
from robustdd_bench.toolkit.trajectories.operations import matching_operations
from robustdd_bench.toolkit.trajectories.rules import Rules


class DATM(TrajectoryDistiller):
    """Difficulty-aligned trajectory matching."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(FlatConfig):
        """A window of start epochs that grows, and learned soft labels."""

        min_start_epoch: Annotated[int, Field(ge=0, le=10_000)] = 0
        """The first epoch that a student starts from."""
        first_start_epochs: Annotated[int, Field(ge=0, le=10_000)] = 10
        """Upper bound of the start epoch in the first iteration; 0, or no less than `start_epochs`:
        that bound from the first."""
        growth_iterations: Annotated[int, Field(ge=0, le=10_000_000)] = 1000
        """Iterations in which the bound grows to `start_epochs`; 0: it is there from the first."""
        learn_labels: bool = True
        """Whether soft labels are learned beside the images; off: hard labels."""
        label_lr: Annotated[float, Field(ge=0, le=1e38)] = 2.0
        """Learning rate of the labels' logits; 0: the experts' labels stay as they are."""
        label_optimiser: Literal["sgd", "adam"] = "sgd"
        """"sgd" (the paper) or "adam"."""
        label_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
        """Momentum of the labels' SGD."""
        label_epoch: Annotated[int, Field(ge=-1, le=10_000)] = -1
        """The experts' epoch that images and labels are chosen by; -1: the last that matching
        needs. The authors' is their last, 100; experts are trained so far if it is named."""
        correct_images: bool = True
        """Whether the set starts from real images that experts classify correctly; off: from
        random ones, labelled by the first expert."""
        loss_limit: Annotated[float, Field(gt=0, le=1e38)] = 1.0
        """An iteration whose matching loss is above it moves nothing."""

        @model_validator(mode="after")
        def _window(self) -> Self:
            bounds = [self.start_epochs]
            if self.first_start_epochs and self.growth_iterations:
                bounds.append(self.first_start_epochs)
            if self.min_start_epoch >= min(bounds):
                raise ValueError(
                    f"min_start_epoch {self.min_start_epoch} leaves no epoch to start from: it "
                    f"must be below start_epochs and first_start_epochs ({min(bounds)})"
                )
            return self

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """Natural training by GSAM, as long as matching and labels need."""
        config: DATM.Config = self.config
        recipe = config.flat_recipe(task)
        return dataclasses.replace(recipe, epochs=max(recipe.epochs, config.label_epoch))

    def outer(self, task: DistillTask) -> OuterFactory | None:
        """The matching loss alone."""
        return None

    def rules(self) -> Rules:
        """The window, the labels and the limit."""
        config: DATM.Config = self.config
        return Rules(
            image_ema=config.image_ema,
            min_start_epoch=config.min_start_epoch,
            first_start_epochs=config.first_start_epochs,
            growth_iterations=config.growth_iterations,
            loss_limit=config.loss_limit if config.loss_limit < 1e38 else math.inf,
            correct_images=config.correct_images,
            expert_labels=config.learn_labels,
            label_epoch=config.label_epoch,
            label_optimiser=config.label_optimiser,
            label_momentum=config.label_momentum,
        )

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        # A recipe asks of its task what the facts hold as well: the threat and the augmentation.
        recipe = self.recipe(cast(DistillTask, facts))
        return matching_operations(self.config, recipe, facts, rules=self.rules())

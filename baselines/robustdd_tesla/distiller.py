"""TESLA (Cui et al. 2023, arXiv 2211.10586): trajectory matching by an approximate gradient.

With g_i the gradient of student step i, the matching loss is |theta_0 - alpha sum_i g_i - theta*|^2
over |theta_0 - theta*|^2, D. TESLA takes

    2 alpha / D  d<g_i, theta* - theta_0 + alpha sum_j g_j>/dx[b_i],

the right side of the product and theta_i held constant, so that one step's graph is in memory at a
time. This is an APPROXIMATION of the gradient of the loss: theta_i depends on x as well, through
the steps before it, and those paths are left out (`robustdd_bench.toolkit.trajectories.unroll` has
the terms). How far it is from the exact gradient, which MTT here computes in the same memory, is
measured in docs/studies/tesla-gradient.md. What the authors publish under this name is the
approximation, so it is what `tesla` computes.

`teacher_labels` is the paper's soft label assignment: in every iteration each image's label is the
target network's prediction for it, softmax(f(x; theta*)). The set then has soft labels, those of
the last iteration, and is ranked among sets with soft labels. The authors use it on ImageNet-1K; in
their published code it fails on other data.

Deviations from the public code (justincui03/tesla at 488842e):

- It multiplies a tuple of gradients by 2 where it means the gradient, so its images move along half
  of the formula (not its alpha). Here the factor is there, and preset `paper` halves `image_lr`.
- It reports the best of many evaluations on the test set; here the last iterate is the set.
- alpha stays in [1e-6, 1], as in MTT here.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self, cast

from pydantic import model_validator

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe
from robustdd_bench.toolkit.trajectories.matching import (
    OuterFactory,
    TrajectoryConfig,
    TrajectoryDistiller,
)
from robustdd_bench.toolkit.trajectories.operations import matching_operations
from robustdd_bench.toolkit.trajectories.rules import Rules


class TESLA(TrajectoryDistiller):
    """Trajectory matching by TESLA's approximation of the gradient."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(TrajectoryConfig):
        """Trajectory matching by an approximate gradient, and labels by the target network."""

        teacher_labels: bool = False
        """Whether each iteration's target network gives the images soft labels."""

        @model_validator(mode="after")
        def _one_source_of_labels(self) -> Self:
            if self.teacher_labels and self.learn_labels:
                raise ValueError(
                    "teacher_labels and learn_labels exclude each other: labels are assigned, or "
                    "learned; set one of them to false"
                )
            return self

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """Natural training."""
        config: TESLA.Config = self.config
        return config.recipe(task)

    def outer(self, task: DistillTask) -> OuterFactory | None:
        """The matching loss alone."""
        return None

    def rules(self) -> Rules:
        """The approximate gradient, and labels by the target network if they are asked for."""
        config: TESLA.Config = self.config
        return Rules(direct=True, assigned_labels=config.teacher_labels)

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        # A recipe asks of its task what the facts hold as well: the threat and the augmentation.
        recipe = self.recipe(cast(DistillTask, facts))
        return matching_operations(self.config, recipe, facts, rules=self.rules())

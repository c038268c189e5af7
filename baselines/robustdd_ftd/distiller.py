"""FTD (Du et al. 2023, arXiv 2211.11004): match the trajectories of flat experts.

A student in distillation starts from an expert's weights, one in use from its own, which lie
elsewhere; the error that this adds up along the way is smaller where the loss is flat. So experts
are trained by GSAM (`robustdd_bench.toolkit.trajectories.gsam`). The matching is MTT's, and the set
is an exponential moving average of the images, x' <- d x' + (1 - d) x after every iteration, which
starts from the first images. With `rho` 0 and `image_ema` 0 the method is MTT, bit for bit.

Deviations from the public code (AngusDujw/FTD-distillation at 711532a):

- It reports the best of many evaluations on the test set, of the images or of their average, and
  judges the average with networks that it has trained on the images before. Here the average after
  the last iteration is the set, and students are fresh.
- The average forgets slowly. With the published d of .9999 (CIFAR-10, 1 image per class) and 5000
  iterations, 61 % of it is still the real images that it started from.
- Its experts are trained for 50 epochs; here for those that matching can use.
- The exact gradient takes one step's memory, and alpha stays in [1e-6, 1], as in MTT here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, cast

from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.trajectories.config import FlatConfig
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe
from robustdd_bench.toolkit.trajectories.matching import OuterFactory, TrajectoryDistiller
from robustdd_bench.toolkit.trajectories.operations import matching_operations
from robustdd_bench.toolkit.trajectories.rules import Rules


class FTD(TrajectoryDistiller):
    """Matching flat trajectories."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(FlatConfig):
        """Trajectory matching on flat experts; the set is an average of the images."""

        image_ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
        """Decay d of the average of the images, which is the set; 0: the last images are."""

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """Natural training by GSAM."""
        config: FTD.Config = self.config
        return config.flat_recipe(task)

    def outer(self, task: DistillTask) -> OuterFactory | None:
        """The matching loss alone."""
        return None

    def rules(self) -> Rules:
        """An average of the images."""
        config: FTD.Config = self.config
        return Rules(image_ema=config.image_ema)

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        # A recipe asks of its task what the facts hold as well: the threat and the augmentation.
        recipe = self.recipe(cast(DistillTask, facts))
        return matching_operations(self.config, recipe, facts, rules=self.rules())

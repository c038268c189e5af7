"""MTT (Cazenavette et al. 2022, arXiv 2203.11932): match the trajectories of natural experts.

Deviations from the public code: the exact gradient is computed with one step's memory
(`robustdd_bench.toolkit.trajectories.unroll`), and alpha is learned as exp(a), so it can be
neither negative nor NaN (`robustdd_bench.toolkit.trajectories.matching`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, cast

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


class MTT(TrajectoryDistiller):
    """Matching training trajectories."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(TrajectoryConfig):
        """MTT has no hyper-parameters beyond those of trajectory matching."""

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """Natural training."""
        config: MTT.Config = self.config
        return config.recipe(task)

    def outer(self, task: DistillTask) -> OuterFactory | None:
        """The matching loss alone."""
        return None

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        # A recipe asks of its task what the facts hold as well: the threat and the augmentation.
        recipe = self.recipe(cast(DistillTask, facts))
        return matching_operations(self.config, recipe, facts)

"""GUARD (Xue et al. 2025, arXiv 2403.10045): SRe2L with a teacher whose loss is smooth.

The regularisation enters the training of the teacher and nothing else; images are recovered, and
labels given, as in SRe2L. The published code holds two penalties, which are not the same method
(`robustdd_bench.toolkit.teachers.penalties`):

- `cure`, its script for CIFAR: lambda times the norm of a difference of gradients, differentiated
  through; lambda 100 and h 3 are its defaults.
- `difference`, its script for larger images: beta times the difference of the losses themselves,
  without a second derivative. There `--lamda` has no effect; h 3 and beta 1e-4 are its defaults.

Deviations from the published code: those of `robustdd_sre2l`. h is a length in the network's input
space; the published one holds for CIFAR pixels divided by std .2023, .1994, .2010, and preset
`paper` converts it to the track's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.teachers.config import TeacherRecipe
from robustdd_bench.toolkit.teachers.method import RecoveredConfig, RecoveringDistiller


class GUARD(RecoveringDistiller):
    """SRe2L with curvature regularisation."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    @settings
    class Config(RecoveredConfig):
        """The penalty of the teacher's training."""

        penalty: Literal["cure", "difference"] = "cure"
        """Which of the two published penalties."""
        curvature_lambda: Annotated[float, Field(ge=0, le=1e9)] = 100.0
        """lambda, the weight of "cure"."""
        curvature_beta: Annotated[float, Field(ge=0, le=1e9)] = 1e-4
        """beta, the weight of "difference"."""
        curvature_h: Annotated[float, Field(gt=0, le=1e6)] = 3.0
        """h, the length of the step along the gradient, in the network's input space."""

    def recipe(self, task: DistillTask) -> TeacherRecipe:
        """Training with the penalty; the weight of the other one has no effect."""
        config: GUARD.Config = self.config
        cure = config.penalty == "cure"
        return config.teacher_recipe(
            penalty=config.penalty,
            weight=config.curvature_lambda if cure else config.curvature_beta,
            radius=config.curvature_h,
        )

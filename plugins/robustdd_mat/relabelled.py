"""A control: MAT's images with the labels of a robust teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from robustdd_bench.config import settings
from robustdd_bench.toolkit.teachers.relabelled import (
    RobustLabels,
    RobustTeacherConfig,
    own_config,
)
from robustdd_mat.distiller import MAT


class MATRobustLabels(RobustLabels):
    """MAT's images with the labels of a robust teacher."""

    CITATION: ClassVar[Path | None] = MAT.CITATION
    METHOD: ClassVar[str] = "mat"
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_robust_labels.toml")

    @settings
    class Config(RobustTeacherConfig, MAT.Config):
        """The teacher, and everything that MAT has."""

    @classmethod
    def quick_config(cls) -> Any:
        """A small teacher, few experts and few steps; for `robustdd check-plugin`."""
        return cls.Config(
            teacher_depth=1,
            teacher_width=4,
            teacher_epochs=1,
            teacher_attack_steps=2,
            experts=1,
            start_epochs=1,
            match_epochs=1,
            student_steps=2,
            iterations=4,
            attack_steps=1,
            checkpoint_seconds=0.0,
        )

    def inner(self) -> MAT:
        """MAT."""
        return MAT(own_config(MAT.Config, self.config))

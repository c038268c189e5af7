"""A control: random images with the labels of a robust teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from robustdd_bench.config import settings
from robustdd_bench.toolkit.teachers.relabelled import RobustLabels, RobustTeacherConfig
from robustdd_coresets.plain import Random


class RandomRobustLabels(RobustLabels):
    """Random training images with the labels of a robust teacher."""

    METHOD: ClassVar[str] = "random"
    real_images: ClassVar[bool] = True
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets_robust_labels.toml")

    @settings
    class Config(RobustTeacherConfig):
        """The teacher."""

    @classmethod
    def quick_config(cls) -> Any:
        """One epoch of a small teacher; for `robustdd check-plugin`."""
        return cls.Config(
            teacher_depth=1, teacher_width=4, teacher_epochs=1, teacher_attack_steps=2
        )

    def inner(self) -> Random:
        """Random images."""
        return Random(Random.Config())

"""SRe2L (Yin et al. 2023, arXiv 2306.13092): squeeze, recover and relabel.

A teacher with batch norm is trained naturally on all training images ("squeeze"); images are
optimised from noise until the teacher gives them their class and its layers see the statistics
that they saw in training ("recover"); the teacher labels every view that a student sees
("relabel"). The last is what the track makes of the teacher that is stored with the set: on a track
without `teaching`, students are trained on hard labels.

Deviations from the published code: images are kept as float32, not as 8-bit JPEG; the teacher's
crop is filled with the mean colour, as all augmentations here; students are what the track says.
The statistics and constants are those of the published script for CIFAR.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from robustdd_bench.config import settings
from robustdd_bench.toolkit.teachers.method import RecoveredConfig, RecoveringDistiller


class SRe2L(RecoveringDistiller):
    """Squeeze, recover and relabel."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    @settings
    class Config(RecoveredConfig):
        """SRe2L has no hyper-parameters beyond those of teacher and recovery."""

"""Improved distribution matching (Zhao et al. 2023).

Features of synthetic images are matched to those of real ones, as in DM, but over networks in
training (`robustdd_bench.toolkit.queues`), with a cross-entropy on top, and the images are mosaics:
each holds 2 x 2 small ones, which students see enlarged. So a set of S images per class trains
students on 4 S. The loss of a class, with acc_f the running accuracy of the network in per cent:

    sum_d (mean f_d(z) - mean f_d(x))^2 + w acc_f CE(g(z), class)

Written from the paper and from what the published code computes (uitrbn/IDM@fe23bbc); deviations
are named in `robustdd_bench.toolkit.queues.matching`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.queues.config import QueueConfig
from robustdd_bench.toolkit.queues.matching import (
    QueueObjective,
    distil_over_queue,
    queue_operations,
)


def squared_distance(made_KF: Tensor, real_KF: Tensor) -> Tensor:
    """Squared Euclidean distance between class means of features, (K,)."""
    return (made_KF - real_KF).square().sum(1)


class IDM(Distiller):
    """Improved distribution matching."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(QueueConfig):
        """IDM's values, as printed for CIFAR-10 at 10 images per class; see `lr_img`."""

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    @classmethod
    def quick_config(cls) -> IDM.Config:
        """A few steps, saved after each; for `robustdd check-plugin`."""
        return cls.Config(
            iterations=4, fresh_every=2, networks_max=4, train_steps=1, checkpoint_seconds=0.0
        )

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Optimise the images; resumes from `task.work_dir`.

        Raises:
            UsageError: a class has fewer images than are asked for, or tiles do not fit.
            RunFailedError: the images or a network diverged.
        """
        config: IDM.Config = self.config
        objective = QueueObjective(
            distance=squared_distance, feature_weight=1.0, ce_weight=config.ce_weight
        )
        return distil_over_queue(task, reporter, config, objective, "idm")

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        return queue_operations(self.config, 0, facts)

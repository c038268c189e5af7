"""The method `mean`: each distilled image is the average of a random group of one class."""

from dataclasses import dataclass

import torch

from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter
from robustdd_bench.errors import UsageError


class Mean(Distiller):
    """Split each class into as many random groups as images are asked for, and average each."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Settings of `Mean`."""

        group: int = 0
        """Images in a group; 0: all of the class are shared out."""

        def __post_init__(self) -> None:
            if self.group < 0:
                raise ValueError(f"group must not be negative, and is {self.group}")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Average the groups."""
        ipc, means = task.ipc or 1, []
        for k, index in enumerate(task.class_indices()):
            if len(index) < ipc:
                raise UsageError(f"class {k} has {len(index)} images, too few for ipc {ipc}")
            order = torch.randperm(len(index), generator=task.seeds.generator("groups", k))
            for group in index[order.to(index.device)].tensor_split(ipc):
                chosen = group[: self.config.group or None]
                means.append(task.pixels(chosen).mean(0))
        labels = torch.arange(task.num_classes, device=task.device).repeat_interleave(ipc)
        return DistilledSet(images=torch.stack(means), labels=labels)

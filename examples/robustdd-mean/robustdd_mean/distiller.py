"""The method `mean`: each distilled image is the average of a random group of one class."""

from typing import Annotated

import torch
from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter


class Mean(Distiller):
    """Split each class into as many random groups as images are asked for, and average each."""

    @settings
    class Config:
        """Settings of `Mean`."""

        group: Annotated[int, Field(ge=0, le=1_000_000)] = 0
        """Images in a group; 0: all of the class are shared out."""

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Average the groups."""
        ipc, means = task.required_ipc(), []
        for k, index in enumerate(task.class_indices()):
            order = torch.randperm(len(index), generator=task.seeds.generator("groups", k))
            for group in index[order.to(index.device)].tensor_split(ipc):
                chosen = group[: self.config.group or None]
                means.append(task.pixels(chosen).mean(0))
        labels = torch.arange(task.num_classes, device=task.device).repeat_interleave(ipc)
        return DistilledSet(images=torch.stack(means), labels=labels)

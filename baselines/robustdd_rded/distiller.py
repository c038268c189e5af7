"""RDED (Sun et al. 2024, arXiv 2312.03526): the crops that a teacher is surest of.

No image is optimised. Of each class `candidates` real images are drawn, the surest of `crops`
random crops of each is kept, the surest images are chosen, and `factor`**2 of them fill an image of
the set. The teacher is stored with the set and labels every view of it, where the track has
students taught by one. On CIFAR the published scripts take a ConvNet-3 with batch norm and `factor`
1, so that images are enlarged crops of real ones.

Deviations from the published code: students see the track's augmentation (published: tiles in
another order, random resized crops, flips); images are kept as float32, not as JPEG; a teacher is
trained here (published: weights that were pretrained).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, DistillTask, Reporter
from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.teachers import Teacher
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.teachers.config import StoredTeacherConfig
from robustdd_bench.toolkit.teachers.method import TeacherDistiller
from robustdd_bench.toolkit.teachers.operations import TeacherOperations
from robustdd_bench.toolkit.teachers.selection import mosaics, surest_crops


class RDED(TeacherDistiller):
    """Realistic, diverse and efficient dataset distillation."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")
    real_images: ClassVar[bool] = True
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")

    @settings
    class Config(StoredTeacherConfig):
        """Teacher and choice of crops; defaults of the published scripts for CIFAR."""

        candidates: Annotated[int, Field(ge=1, le=10_000_000)] = 300
        """Real images of each class that are looked at, or all of them if there are fewer."""
        crops: Annotated[int, Field(ge=1, le=10_000)] = 5
        """Random crops of each of them."""
        smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.08
        """Smallest share of an image's area in a crop."""
        factor: Annotated[int, Field(ge=1, le=16)] = 1
        """Tiles along an edge of an image."""

    @classmethod
    def quick_config(cls) -> Any:
        """One epoch of a small teacher; for `robustdd check-plugin`."""
        return cls.Config(teacher_depth=1, teacher_width=4, teacher_epochs=1, candidates=8, crops=2)

    def check(self, task: DistillTask) -> None:
        """Raise UsageError where there are fewer images than tiles, or tiles without a pixel."""
        config: RDED.Config = self.config
        wanted = task.required_ipc() * config.factor**2
        if config.factor > min(task.images.shape[-2:]):
            raise UsageError(
                f"factor {config.factor} leaves no pixel of images of "
                f"{task.images.shape[-2]}x{task.images.shape[-1]}; lower it"
            )
        for k, index in enumerate(task.class_indices()):
            looked_at = min(config.candidates, len(index))
            if looked_at < wanted:
                raise UsageError(
                    f"{wanted} tiles of class {k} are needed and {looked_at} images are looked "
                    "at; raise candidates, or lower factor"
                )

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        config: RDED.Config = self.config
        counted = TeacherOperations(facts, config.teacher_recipe())
        looked_at = facts.classes * min(config.candidates, facts.train // facts.classes)
        distill = looked_at * config.crops * counted.forward()
        return MakingOperations(experts=counted.training(), distill=distill)

    def with_teacher(
        self,
        task: DistillTask,
        reporter: Reporter,
        network: nn.Module,
        teacher: Teacher | None,
        key: str,
    ) -> DistilledSet:
        """Choose the crops, class by class."""
        config: RDED.Config = self.config
        ipc, shape = task.required_ipc(), task.images.shape[-2:]
        wanted = ipc * config.factor**2
        images = []
        with reporter.progress("choosing crops", task.num_classes) as bar:
            for k, index in enumerate(task.class_indices()):
                source = task.seeds.generator("candidates", k)
                order = torch.randperm(len(index), generator=source)[: config.candidates]
                tiles = surest_crops(
                    task,
                    network,
                    index[order.to(index.device)],
                    k,
                    count=wanted,
                    crops=config.crops,
                    smallest=config.smallest_crop,
                    size=[side // config.factor for side in shape],
                    seeds=task.seeds,
                )
                images.append(mosaics(tiles, ipc, config.factor, shape))
                bar.advance()
        return DistilledSet(
            images=torch.cat(images),
            labels=torch.arange(task.num_classes, device=task.device).repeat_interleave(ipc),
            teacher=teacher,
        )

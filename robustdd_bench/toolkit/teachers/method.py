"""Methods with a teacher: what SRe2L, GUARD, RDED and relabelled sets share."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import Field
from torch import nn

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, DistillTask, Part, Reporter, StagedDistiller
from robustdd_bench.identity import identity
from robustdd_bench.protocol.teachers import Teacher
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.loop import iterate
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.teachers.config import StoredTeacherConfig, TeacherRecipe
from robustdd_bench.toolkit.teachers.operations import TeacherOperations
from robustdd_bench.toolkit.teachers.recovery import Recovery, RecoveryConfig, Statistics
from robustdd_bench.toolkit.teachers.training import TeacherStore


class TeacherDistiller(StagedDistiller):
    """A method whose first part is the training of a teacher."""

    def recipe(self, task: DistillTask) -> TeacherRecipe:
        """How the teacher is trained: naturally, if a method says nothing else."""
        config: StoredTeacherConfig = self.config
        return config.teacher_recipe()

    def store(self, task: DistillTask) -> TeacherStore:
        """Where the teacher is."""
        return TeacherStore(task, self.recipe(task))

    def check(self, task: DistillTask) -> None:
        """Raise UsageError for what would fail after the teacher has been trained."""

    def parts(self, task: DistillTask) -> Sequence[Part]:
        """The teacher.

        Raises:
            UsageError: the settings do not fit the task; nothing has been trained.
        """
        self.check(task)
        return (self.store(task).part,)

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        """Train the teacher."""
        self.store(task).train(reporter)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Make the set with the teacher."""
        self.check(task)
        store = self.store(task)
        if not store.part.output.exists():  # called by hand
            self.make_part(store.part, task, reporter)
        network, teacher = store.load()
        stored = teacher if self.config.labels == "teacher" else None
        return self.with_teacher(task, reporter, network, stored, store.key)

    @abc.abstractmethod
    def with_teacher(
        self,
        task: DistillTask,
        reporter: Reporter,
        network: nn.Module,
        teacher: Teacher | None,
        key: str,
    ) -> DistilledSet:
        """Make the set.

        Args:
            task: the task.
            reporter: told of progress.
            network: the teacher, pixels to logits, in eval mode and frozen.
            teacher: what goes into the set; None: nothing.
            key: names everything that shaped it.
        """


@settings
class RecoveredConfig(RecoveryConfig):
    """Teacher, recovery, and what is handed on."""

    checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    """How much of the recovery, in seconds, an interrupted run may lose."""


class RecoveringDistiller(TeacherDistiller):
    """Images recovered from the statistics of a teacher."""

    @classmethod
    def quick_config(cls) -> Any:
        """One epoch of a small teacher and a few steps; for `robustdd check-plugin`."""
        return cls.Config(
            teacher_depth=1,
            teacher_width=4,
            teacher_epochs=1,
            iterations=3,
            checkpoint_seconds=0.0,
        )

    def check(self, task: DistillTask) -> None:
        """Raise UsageError for a teacher without batch norm."""
        recipe = self.recipe(task)
        network = task.registered_network(recipe.network, recipe.options)(0)
        with Statistics(split_network(network)[1]):
            pass

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        counted = TeacherOperations(facts, self.recipe(cast(DistillTask, facts)))
        steps = self.config.iterations * facts.images
        return MakingOperations(experts=counted.training(), distill=steps * counted.pixels())

    def with_teacher(
        self,
        task: DistillTask,
        reporter: Reporter,
        network: nn.Module,
        teacher: Teacher | None,
        key: str,
    ) -> DistilledSet:
        """Recover the images; resumes from `task.work_dir`."""
        config, ipc = self.config, task.required_ipc()
        shape = identity(config) | {"checkpoint_seconds": 0, "labels": ""}
        text = json.dumps([shape, key, ipc, identity(task.seeds)], sort_keys=True)
        return iterate(
            Recovery(task, config, ipc, network, teacher, task.seeds),
            task,
            reporter,
            title="recovery",
            total=config.iterations,
            key=hashlib.sha256(text.encode()).hexdigest(),
            checkpoint_seconds=config.checkpoint_seconds,
        )

"""Controls: the images of another method, and a teacher that was trained adversarially.

A method such as GUARD hands on images and a robust teacher's labels at once, so a robust student
does not say in which of them the robustness lies. Here the images are those of another method, the
same for the same seed and settings, and the teacher is trained by PGD-AT. On a track whose
students are taught by a teacher they are taught by this one; on any other track the set is that of
the method itself.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from robustdd_bench.config import mixin_settings
from robustdd_bench.distillers import DistilledSet, DistillTask, Part, Reporter, StagedDistiller
from robustdd_bench.errors import UsageError
from robustdd_bench.toolkit.adversarial import FAST_STEP, check_eps, eps_of
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.teachers.config import TeacherConfig, TeacherRecipe
from robustdd_bench.toolkit.teachers.operations import TeacherOperations
from robustdd_bench.toolkit.teachers.training import TeacherStore


@mixin_settings
class RobustTeacherConfig(TeacherConfig):
    """A teacher that was trained adversarially."""

    teacher_flavour: Literal["pgd", "fast", "natural"] = "pgd"
    """Adversarial training of the teacher: "pgd", "fast" (one step of 1.25 eps), or "natural"."""
    teacher_eps: Annotated[float, Field(ge=-1, le=100)] = -1.0
    """Radius of its adversary, in pixel units; -1: the track's headline eps."""
    teacher_attack_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Steps of its adversary; "fast" takes one."""
    teacher_attack_step_size: Annotated[float, Field(gt=0, le=1000)] = 0.25
    """Their size as a share of eps; "fast" takes 1.25."""

    @model_validator(mode="after")
    def _teacher_eps_of_the_track(self) -> Self:
        check_eps(self.teacher_eps, "teacher_eps")
        return self

    def robust_recipe(self, task: DistillTask) -> TeacherRecipe:
        """The recipe that these settings mean on a task."""
        if self.teacher_flavour == "natural":
            return self.teacher_recipe()
        eps = eps_of(self.teacher_eps, task.threat)
        fast = self.teacher_flavour == "fast"
        return self.teacher_recipe(
            penalty=self.teacher_flavour,
            norm=task.threat.norm,
            eps=eps,
            attack_steps=1 if fast else self.teacher_attack_steps,
            attack_step_size=eps * (FAST_STEP if fast else self.teacher_attack_step_size),
        )


class RobustLabels(StagedDistiller):
    """The images of a method, with a teacher."""

    METHOD: ClassVar[str]
    """Name of the method, which its seeds depend on."""

    @abc.abstractmethod
    def inner(self) -> Any:
        """The method, with its part of the configuration."""

    def _store(self, task: DistillTask) -> TeacherStore:
        return TeacherStore(task, self.config.robust_recipe(task))

    def _inner_task(self, task: DistillTask) -> DistillTask:
        return dataclasses.replace(task, seeds=dataclasses.replace(task.seeds, method=self.METHOD))

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        recipe = self.config.robust_recipe(cast(DistillTask, facts))
        own: MakingOperations = self.inner().operations(facts)
        training = TeacherOperations(facts, recipe).training()
        return MakingOperations(experts=own.experts + training, distill=own.distill)

    def parts(self, task: DistillTask) -> Sequence[Part]:
        """The teacher, and the parts of the method."""
        inner, store = self.inner(), self._store(task)
        own = inner.parts(self._inner_task(task)) if isinstance(inner, StagedDistiller) else ()
        return (store.part, *own)

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        """Train the teacher, or what the method wants."""
        store = self._store(task)
        if part == store.part:
            store.train(reporter)
        else:
            self.inner().make_part(part, self._inner_task(task), reporter)

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Make the method's set, and add the teacher.

        Raises:
            UsageError: the method made its set for another preprocessing than the track's, behind
                which the teacher does not stand.
        """
        store = self._store(task)
        made: DistilledSet = self.inner().distill(self._inner_task(task), reporter)
        if made.preprocessing not in (None, task.preprocessing):
            raise UsageError(
                "the teacher stands behind the track's preprocessing; set preprocessing=track"
            )
        if not store.part.output.exists():  # called by hand
            store.train(reporter)
        return dataclasses.replace(made, teacher=store.load()[1])


def own_config(kind: type[Any], config: Any) -> Any:
    """The part of a configuration that is the method's own.

    Args:
        kind: the method's configuration.
        config: one that extends it.
    """
    return kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(kind)})

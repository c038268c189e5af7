"""Transfer: adversarial examples made on other students, tried on this one.

A student that falls for examples made on its siblings, and not for those made on itself, hides its
gradients (Papernot et al. 2016, "Transferability in machine learning"; Athalye et al. 2018). The
sources are the other students of the run; PGD is run on each of them in turn, and per example the
one that fools the student best is kept. Its own gradients are not used.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from robustdd_attacks import papers
from robustdd_attacks.common import Best, judge
from robustdd_attacks.pgd import PGD
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings
from robustdd_bench.errors import UsageError


class Transfer(Attack):
    """PGD on other students, the worst for this one."""

    CITATION: ClassVar[str] = papers.TRANSFER

    white_box = False
    uses_sources = True

    @settings
    class Config:
        """Settings of `Transfer`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
        """Steps of PGD on each source."""
        sources: Annotated[int, Field(ge=1, le=1000)] = 4
        """How many other students are used, at most."""

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`.

        Raises:
            UsageError: there is no other student.
        """
        if not task.sources:
            raise UsageError("transfer needs other students; the track has one only")
        best = Best(task.images)
        make = PGD(PGD.Config(steps=self.config.steps))
        for source in task.sources[: self.config.sources]:
            moved = make.perturb(dataclasses.replace(task, model=source)).images
            with torch.no_grad():
                judged = judge(task.model(moved), task.labels, task.threat.targeted)
            best.offer(moved, *judged)
        return AttackResult(images=best.images)

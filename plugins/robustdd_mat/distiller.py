"""MAT (Lai et al. 2025, arXiv 2503.12069): match the smoothed trajectories of robust experts.

Experts are trained adversarially; the weights of such training move too fast to be matched, so the
trajectory is their exponential moving average, phi <- m phi + (1 - m) theta after every step, and
phi is kept once an epoch. The distillation is MTT's, on phi, with clean cross-entropy in the
student's steps: robustness has to come out of natural training on the set. `joint_weight` adds the
joint optimisation of adversarial examples and images (`robustdd_mat.joint`).

What is known of the paper: its abstract says that adversarial samples go into the generation of the
trajectories, and that students are trained naturally. That experts are trained by PGD-AT, TRADES or
MART, and that their trajectory is a moving average, comes from other people's accounts of it. The
joint optimisation, and a gain of "12.3 points with 0.1 % of the images", come from one summary that
a machine wrote; the abstract has neither. The paper's hyper-parameters were not to be had; the
defaults below are ours (see presets.toml for what was tuned on validation splits), and so is the
preset `field`, MTT's settings with the field's attack, which was once called `paper`.

With eps 0 and ema 0 the method is MTT, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.config import settings
from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.adversarial import Adversary, check_eps, eps_of
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe
from robustdd_bench.toolkit.trajectories.matching import (
    OuterFactory,
    TrajectoryConfig,
    TrajectoryDistiller,
)
from robustdd_bench.toolkit.trajectories.operations import matching_operations
from robustdd_mat.joint import JointOuter


class MAT(TrajectoryDistiller):
    """Matching adversarial trajectories."""

    CITATION: ClassVar[Path] = Path(__file__).with_name("citation.bib")

    @settings
    class Config(TrajectoryConfig):
        """Trajectory matching with adversarially trained, smoothed experts."""

        flavour: Literal["natural", "pgd", "fast", "trades", "mart"] = "pgd"
        """Adversarial training of the experts: "pgd", "fast" (one step, a fraction of the cost),
        "trades", "mart" (or "natural")."""
        eps: Annotated[float, Field(ge=-1, le=100)] = -1.0
        """Radius of the experts' adversary, in pixel units; -1: the track's headline eps."""
        attack_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
        """Steps of the experts' adversary; "fast" takes one. From its random start it moves at most
        `attack_steps` x `attack_step_size` x eps: .75 eps by the preset of the digits."""
        attack_step_size: Annotated[float, Field(gt=0, le=1000)] = 0.25
        """Its step size as a share of eps (2/255 of 8/255); "fast" takes 1.25."""
        beta: Annotated[float, Field(ge=0, le=1e6)] = 6.0
        """Weight of the regulariser of TRADES and MART."""
        ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
        """m of the moving average; 0: the plain trajectory."""
        joint_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.0
        """gamma: weight of the joint robust term; 0: the matching loss alone."""
        joint_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 128
        """Real images of the joint term in each iteration."""

        @model_validator(mode="after")
        def _eps_of_the_track(self) -> Self:
            check_eps(self.eps)
            return self

    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets.toml")
    PRESET_ALIASES: ClassVar[Mapping[str, str]] = {"paper": "field"}

    def recipe(self, task: DistillTask) -> ExpertRecipe:
        """Adversarial training with a moving average of the weights."""
        config: MAT.Config = self.config
        eps = eps_of(config.eps, task.threat)
        return dataclasses.replace(
            config.recipe(task),
            flavour=config.flavour,
            norm=task.threat.norm,
            eps=eps,
            attack_steps=config.attack_steps,
            attack_step_size=config.attack_step_size * eps,
            beta=config.beta,
            ema=config.ema,
        )

    def outer(self, task: DistillTask) -> OuterFactory | None:
        """The matching loss, and the joint term if it has a weight."""
        config: MAT.Config = self.config
        if config.joint_weight == 0:
            return None
        eps = eps_of(config.eps, task.threat)
        adversary = Adversary(
            threat=ThreatModel(task.threat.norm, eps),
            steps=config.attack_steps,
            step_size=config.attack_step_size * eps,
        )
        return JointOuter(task, adversary, config.joint_weight, config.joint_batch)

    def operations(self, facts: Facts) -> MakingOperations:
        """Floating-point operations; see `robustdd_bench.toolkit.operations`."""
        config: MAT.Config = self.config
        joint = 0.0
        if config.joint_weight:
            step = facts.network.step("pgd", config.attack_steps)
            joint = min(config.joint_batch, facts.train) * step
        # A recipe asks of its task what the facts hold as well: the threat and the augmentation.
        recipe = self.recipe(cast(DistillTask, facts))
        return matching_operations(config, recipe, facts, joint)

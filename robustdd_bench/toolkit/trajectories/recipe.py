"""How an expert is trained, and the seeds that all trajectory methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from robustdd_bench.identity import identity
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import FAST_STEP, FLAVOURS
from robustdd_bench.toolkit.fast.precision import check_precision


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRecipe:
    """Everything that shapes a trajectory, beside the data, the network and the seed."""

    ADDED: ClassVar[Mapping[str, str]] = {
        "precision": "0.2.0",
        "gsam_rho": "0.2.0",
        "gsam_alpha": "0.2.0",
        "gsam_adaptive": "0.2.0",
    }
    """Later fields, with the version in which each came (see `robustdd_bench.identity`)."""

    epochs: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augmentation: str = "none"
    flavour: str = "natural"
    norm: str = "Linf"
    eps: float = 0.0
    """Radius of the adversary, in pixel units."""
    attack_steps: int = 10
    attack_step_size: float = 0.0
    """In pixel units."""
    beta: float = 6.0
    ema: float = 0.0
    precision: str = "default"
    """Of the training; see `robustdd_bench.toolkit.fast.precision`."""
    gsam_rho: float = 0.0
    """Radius of the ascent of flat training (`robustdd_bench.toolkit.trajectories.gsam`); 0: plain
    gradient descent."""
    gsam_alpha: float = 0.0
    """Weight of the surrogate gap in flat training."""
    gsam_adaptive: bool = False
    """Whether the ascent of flat training is scaled by the weights' own sizes."""

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise ValueError(f"flavour must be one of {', '.join(FLAVOURS)}, not {self.flavour!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), not {self.ema}")
        check_precision(self.precision)
        if self.eps < 0:
            raise ValueError(f"eps of the experts must not be negative, not {self.eps}")
        if self.gsam_rho < 0 or self.gsam_alpha < 0:
            raise ValueError(
                "gsam_rho and gsam_alpha must not be negative, not "
                f"{self.gsam_rho} and {self.gsam_alpha}"
            )

    def canonical(self) -> ExpertRecipe:
        """The same training with fields that have no effect set to their defaults.

        PGD-AT with eps 0 is natural training: it must find the same stored experts. So is flat
        training of radius 0, but for rounding.
        """
        if self.gsam_rho == 0 and (self.gsam_alpha or self.gsam_adaptive):
            return dataclasses.replace(self, gsam_alpha=0.0, gsam_adaptive=False).canonical()
        single = self.flavour in ("pgd", "fast")
        natural = self.flavour == "natural" or (single and self.eps == 0)
        if natural:
            return dataclasses.replace(
                self,
                flavour="natural",
                norm="Linf",
                eps=0.0,
                attack_steps=0,
                attack_step_size=0.0,
                beta=0.0,
            )
        if self.flavour == "fast":
            step = FAST_STEP * self.eps
            return dataclasses.replace(self, attack_steps=1, attack_step_size=step, beta=0.0)
        return dataclasses.replace(self, beta=0.0) if single else self

    def description(self) -> dict[str, Any]:
        """The fields that are part of its identity, as JSON values."""
        fields: dict[str, Any] = identity(self)
        return fields


def family_seeds(seeds: Seeds) -> Seeds:
    """The seeds that all trajectory methods share (the method's name is left out)."""
    return Seeds(seeds.base, seeds.track, "trajectory")

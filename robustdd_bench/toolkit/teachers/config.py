"""The settings of a teacher's training, shared by all methods that have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from robustdd_bench.config import mixin_settings
from robustdd_bench.identity import identity
from robustdd_bench.toolkit.dsa import Augmentation

Penalty = Literal["none", "cure", "difference", "pgd", "fast"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecipe:
    """Everything that shapes a teacher, beside the data and the seed."""

    ADDED: ClassVar[Mapping[str, str]] = {}

    network: str
    options: Mapping[str, Any]
    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    batch_size: int
    augmentation: str
    penalty: Penalty = "none"
    weight: float = 0.0
    """Of the penalty "cure" (lambda) or "difference" (beta)."""
    radius: float = 0.0
    """h, the length of the step of these penalties, in the network's input space."""
    norm: str = "Linf"
    eps: float = 0.0
    """Radius of the adversary of "pgd" and "fast", in pixel units."""
    attack_steps: int = 0
    attack_step_size: float = 0.0
    """In pixel units."""

    def description(self) -> dict[str, Any]:
        """The fields that are part of its identity, as JSON values."""
        fields: dict[str, Any] = identity(self)
        return fields


@mixin_settings
class TeacherConfig:
    """Training of the teacher."""

    teacher: str = "convnet"
    """A registered network. SRe2L and GUARD read the running statistics of its batch norm."""
    teacher_depth: Annotated[int, Field(ge=1, le=100)] = 3
    """Blocks of a "convnet" teacher; other networks have none to set."""
    teacher_width: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Channels of a "convnet" teacher."""
    teacher_epochs: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Passes over the training images."""
    teacher_lr: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Learning rate at the start; it falls to 0 as a cosine, epoch by epoch."""
    teacher_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    teacher_decay: Annotated[float, Field(ge=0, le=100)] = 5e-4
    """Weight decay of SGD."""
    teacher_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Images a step."""
    teacher_augmentation: str = "crop_flip"
    """Families of DSA, each applied to every batch; flips are left out where they change labels."""

    @model_validator(mode="after")
    def _known_augmentation(self) -> Self:
        Augmentation.parse(self.teacher_augmentation)
        return self

    def network_options(self) -> dict[str, Any]:
        """Options of the teacher's builder: of a ConvNet its size, and batch norm."""
        if self.teacher != "convnet":
            return {}
        return {"depth": self.teacher_depth, "width": self.teacher_width, "norm": "batch"}

    def teacher_recipe(self, **more: Any) -> TeacherRecipe:
        """The recipe that these settings mean.

        Args:
            **more: fields of the penalty.
        """
        return TeacherRecipe(
            network=self.teacher,
            options=self.network_options(),
            epochs=self.teacher_epochs,
            learning_rate=self.teacher_lr,
            momentum=self.teacher_momentum,
            weight_decay=self.teacher_decay,
            batch_size=self.teacher_batch,
            augmentation=self.teacher_augmentation,
            **more,
        )


@mixin_settings
class StoredTeacherConfig(TeacherConfig):
    """A teacher that may go into the set."""

    labels: Literal["teacher", "hard"] = "teacher"
    """"teacher": the teacher is stored with the set, for tracks whose students are taught by one;
    "hard": it is not, and every track trains on the classes of the images."""

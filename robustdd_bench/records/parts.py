"""The parts of a record: what each of them says, and which values it may hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from robustdd_bench.executors import Commit, Process
from robustdd_bench.plugins import NAME_PATTERN
from robustdd_bench.strict import MAX_TENSORS, StrictModel

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
BITS_PATTERN = r"^[0-9]{1,7}:[A-Za-z0-9+/]*={0,2}$"
Bits = Field(pattern=BITS_PATTERN, max_length=2_000_000)
Name = Field(pattern=NAME_PATTERN)


class RecordPart(StrictModel):
    """What every part of a record has in common."""


class MethodInfo(RecordPart):
    """Which method, from where, with which hyper-parameters (all of them)."""

    name: str = Name
    plugin: str
    distribution: str
    version: str
    preset: str
    config: dict[str, Any]
    reference: bool
    """Whether it is a reference, such as training on the full data, and no distilled set."""


class AttackInfo(RecordPart):
    """Which attack, from where, with which settings."""

    name: str = Name
    plugin: str
    version: str
    config: dict[str, Any]


class DataInfo(RecordPart):
    """The data the run saw."""

    ADDED: ClassVar = {"classes": "0.2.0"}

    dataset: str
    num_classes: int = Field(gt=1)
    shape: tuple[int, int, int]
    train_examples: int = Field(gt=0)
    train_sha256: str = Sha256
    evaluation_examples: int = Field(gt=0)
    evaluation_sha256: str = Sha256
    classes: tuple[Annotated[str, Field(max_length=255)], ...] = Field(
        default=(), max_length=100_000
    )
    """Names of the classes in their order, of a dataset whose files alone say them."""


class TeacherInfo(RecordPart):
    """The network that is stored with a set and labels what students see."""

    network: str = Name
    options: dict[str, Any]
    sha256: str = Sha256
    tensors: dict[str, tuple[Annotated[int, Field(ge=0, le=2**31)], ...]] = Field(
        min_length=1, max_length=MAX_TENSORS
    )
    """The shape of each; all are float32."""

    @property
    def stored_bytes(self) -> int:
        """What the tensors weigh."""
        return 4 * sum(math.prod(shape) for shape in self.tensors.values())


class SetInfo(RecordPart):
    """The distilled set."""

    ADDED: ClassVar = {"mosaic": "0.2.0", "teacher": "0.2.0"}

    sha256: str = Sha256
    images: int = Field(gt=0)
    """Stored images."""
    images_per_class: tuple[int, ...]
    labels: Literal["hard", "soft"]
    learning_rate: float | None
    augmentation: str | None
    preprocessing: dict[str, Any] | None
    pixel_min: float
    pixel_max: float
    teacher: TeacherInfo | None = None
    provenance: dict[str, Any]
    mosaic: int = Field(default=1, ge=1)
    """Tiles a side of each image; students train on the tiles, enlarged to full size."""

    def stored_bytes(self, shape: Sequence[int], num_classes: int) -> int:
        """What images, labels and teacher weigh.

        Args:
            shape: of one image.
            num_classes: K.
        """
        label = 4 * num_classes if self.labels == "soft" else 8
        teacher = 0 if self.teacher is None else self.teacher.stored_bytes
        return self.images * (4 * math.prod(shape) + label) + teacher

    @property
    def training_images(self) -> int:
        """How many images students train on."""
        return self.images * self.mosaic**2


class OverlapInfo(RecordPart):
    """How many images of the set are copies of others; see `robustdd_bench.evaluation.overlap`."""

    images: int = Field(gt=0)
    """Those that students train on: of mosaics, the tiles."""
    exact_test: int = Field(ge=0)
    """Exact copies of images that students are judged on, and of no training image."""
    near_test: int = Field(ge=0)
    """Further images that are near one that students are judged on."""
    exact_train: int = Field(ge=0)
    """Exact copies of training images, which a method may return."""
    near_train: int = Field(ge=0)
    """Further images that are near a training image."""
    closest_test: float = Field(ge=0, le=1)
    """Largest correlation to an image that students are judged on; copies of training images are
    left out."""

    @model_validator(mode="after")
    def _counts(self) -> OverlapInfo:
        if self.exact_test + self.near_test + self.exact_train + self.near_train > self.images:
            raise ValueError("the copies are more than the images of the set")
        return self


class AttackBits(RecordPart):
    """What one attack at one eps did to one student."""

    ADDED: ClassVar = {"tried": "0.1.0", "warnings": "0.1.0"}

    attack: str
    eps: float = Field(gt=0)
    seed: int
    robust: str = Bits
    """Examples that the student still gets right, one bit each: "N:base64". Of an attack on
    survivors: that it still gets right after the attacks before as well."""
    tried: str | None = Field(default=None, pattern=BITS_PATTERN, max_length=2_000_000)
    """Examples that were attacked; none: all that are right without an attack."""
    broken: int = Field(ge=0)
    violations: int = Field(ge=0)
    """Examples that left the ball or [0,1], or were not finite; none counts as broken."""
    forwards: int = Field(ge=0)
    """Images the attack passed through the student."""
    batch_size: int = Field(gt=0)
    verify_batch_size: int = Field(gt=0)
    warnings: tuple[str, ...] = ()
    """What the attack says of its own result."""


class StudentResult(RecordPart):
    """One student: how it was trained, and its raw outcomes."""

    index: int = Field(ge=0)
    seed: int
    sha256: str = Sha256
    """Hash of its weights."""
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    final_loss: float
    train_accuracy: float = Field(ge=0, le=1)
    clean: str = Bits
    attacks: tuple[AttackBits, ...]


class AggregateInfo(RecordPart):
    """An accuracy in [0,1] over students.

    `std` is over students (ddof 1); `low` and `high` are the 95 % Wilson interval over examples.
    """

    mean: float = Field(ge=0, le=1)
    std: float | None = Field(ge=0)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    values: tuple[float, ...]
    n_students: int = Field(gt=0)
    n_examples: int = Field(gt=0)


class RobustAggregate(RecordPart):
    """Accuracy at one eps, per example the worst case over all attacks at it or a smaller one."""

    eps: float = Field(gt=0)
    accuracy: AggregateInfo


class AttackAggregate(RecordPart):
    """Accuracy under one attack at one eps."""

    attack: str
    eps: float = Field(gt=0)
    accuracy: AggregateInfo


class Aggregates(RecordPart):
    """What tables show."""

    clean: AggregateInfo
    headline_eps: float
    headline: AggregateInfo
    robust: tuple[RobustAggregate, ...]
    attacks: tuple[AttackAggregate, ...]


class Flag(RecordPart):
    """One sanity check on one student; a run with a failed one does not rank."""

    student: int = Field(ge=0)
    name: str
    passed: bool
    evidence: str


class StageTime(RecordPart):
    """What a stage cost; not part of the result."""

    stage: str
    cells: int = Field(ge=0)
    wall_s: float = Field(ge=0)
    items: int = Field(ge=0)
    unit: str
    items_per_s: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)


class StageProcess(RecordPart):
    """A process, or several that are alike, with what they did of a stage."""

    stage: str
    cells: int = Field(gt=0)
    process: Process


class Adopted(RecordPart):
    """The run whose distilled set is reused instead of being made again."""

    run_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    results_sha256: str = Sha256
    torch: str
    harness: str
    commit: Commit | None


class Costs(RecordPart):
    """When, where and at what cost; a repeated run differs here and only here."""

    ADDED: ClassVar = {"adopted": "0.1.0", "processes": "0.2.0"}

    started: datetime
    finished: datetime
    stages: tuple[StageTime, ...]
    environment: dict[str, Any]
    commit: Commit | None
    adopted: Adopted | None = None
    """If so, experts and distillation are that run's, their costs too."""
    processes: tuple[StageProcess, ...] = ()
    """What did the work, each kind once a stage; `environment` and `commit` are those of the
    process that wrote the record. Without those of cells that an older version ran."""

    @model_validator(mode="after")
    def _in_order(self) -> Costs:
        if self.finished < self.started:
            raise ValueError("the run finished before it started")
        return self

    @property
    def mixed(self) -> bool:
        """Whether parts of the run were done by other code, or on another torch or machine."""
        return len({item.process.model_dump_json() for item in self.processes}) > 1

    @property
    def dirty(self) -> bool:
        """Whether any of it was done by code with uncommitted changes."""
        commits = [self.commit, self.adopted.commit if self.adopted else None]
        commits += [item.process.commit for item in self.processes]
        return any(commit is not None and commit.dirty for commit in commits)


class Failure(RecordPart):
    """Why a run failed."""

    stage: str
    cell: str
    error: str
    reason: str

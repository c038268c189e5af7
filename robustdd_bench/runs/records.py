"""Records: what a run leaves behind, as one validated JSON file.

A record holds raw outcomes (which examples each student got right, with and without each attack);
every aggregate in it can be computed from them again, and reading a record does so. Unknown keys
are forbidden and numbers are finite. `schema_version` rises with any change of meaning; old
versions stay loadable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.robustness import unpack_bits, worst_case
from robustdd_bench.evaluation.statistics import aggregate
from robustdd_bench.files import read_json, write_json
from robustdd_bench.protocol.tracks import Track

SCHEMA_VERSION = 1
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
Bits = Field(pattern=r"^[0-9]{1,9}:[A-Za-z0-9+/]*={0,2}$")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodInfo(_Model):
    """Which method, from where, with which hyper-parameters (all of them)."""

    name: str
    plugin: str
    distribution: str
    version: str
    preset: str
    config: dict[str, Any]
    reference: bool
    """An end of the scale (full data) rather than a distilled set."""


class AttackInfo(_Model):
    """Which attack, from where, with which settings."""

    name: str
    plugin: str
    version: str
    config: dict[str, Any]


class DataInfo(_Model):
    """The data the run saw."""

    dataset: str
    num_classes: int = Field(gt=1)
    shape: tuple[int, int, int]
    train_examples: int = Field(gt=0)
    train_sha256: str = Sha256
    evaluation_examples: int = Field(gt=0)
    evaluation_sha256: str = Sha256


class SetInfo(_Model):
    """The distilled set."""

    sha256: str = Sha256
    images: int = Field(gt=0)
    images_per_class: tuple[int, ...]
    labels: Literal["hard", "soft"]
    learning_rate: float | None
    augmentation: str | None
    preprocessing: dict[str, Any] | None
    pixel_min: float
    pixel_max: float
    provenance: dict[str, Any]


class AttackResult(_Model):
    """What one attack at one eps did to one student."""

    attack: str
    eps: float = Field(gt=0)
    seed: int
    robust: str = Bits
    """Examples that the student still gets right, one bit each: "N:base64"."""
    broken: int = Field(ge=0)
    violations: int = Field(ge=0)
    """Examples that left the ball or [0,1], or were not finite; none counts as broken."""
    forwards: int = Field(ge=0)
    """Images the attack passed through the student."""
    batch_size: int = Field(gt=0)
    verify_batch_size: int = Field(gt=0)


class StudentResult(_Model):
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
    attacks: tuple[AttackResult, ...]


class AggregateInfo(_Model):
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


class RobustAggregate(_Model):
    """Accuracy at one eps, per example the worst case over the suite and over smaller eps."""

    eps: float = Field(gt=0)
    accuracy: AggregateInfo


class AttackAggregate(_Model):
    """Accuracy under one attack at one eps."""

    attack: str
    eps: float = Field(gt=0)
    accuracy: AggregateInfo


class Aggregates(_Model):
    """What tables show."""

    clean: AggregateInfo
    headline_eps: float
    headline: AggregateInfo
    robust: tuple[RobustAggregate, ...]
    attacks: tuple[AttackAggregate, ...]


class Flag(_Model):
    """One sanity check on one student; a run with a failed one does not rank."""

    student: int = Field(ge=0)
    name: str
    passed: bool
    evidence: str


class StageTime(_Model):
    """What a stage cost; not part of the result."""

    stage: str
    cells: int = Field(ge=0)
    wall_s: float = Field(ge=0)
    items: int = Field(ge=0)
    unit: str
    items_per_s: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)


class Commit(_Model):
    """The code's commit."""

    sha: str
    dirty: bool


class Costs(_Model):
    """When, where and at what cost; a repeated run differs here and only here."""

    started: datetime
    finished: datetime
    stages: tuple[StageTime, ...]
    environment: dict[str, Any]
    commit: Commit | None


class Failure(_Model):
    """Why a run failed."""

    stage: str
    cell: str
    error: str
    reason: str


class Record(_Model):
    """A run: complete with results, or failed with a reason."""

    schema_version: Literal[1] = 1
    run_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    status: Literal["complete", "failed"]
    split: Literal["test", "validation"]
    track: Track
    track_sha256: str = Sha256
    method: MethodInfo
    attacks: tuple[AttackInfo, ...]
    seed: int = Field(ge=0)
    device: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)
    torch: str
    harness: str
    command: str
    data: DataInfo | None
    distilled: SetInfo | None
    students: tuple[StudentResult, ...]
    aggregates: Aggregates | None
    flags: tuple[Flag, ...]
    failure: Failure | None
    results_sha256: str = Sha256
    """Hash of everything but `costs` and itself."""
    costs: Costs

    @property
    def publishable(self) -> bool:
        """Complete, on the test split, every check passed."""
        return (
            self.status == "complete"
            and self.split == "test"
            and all(flag.passed for flag in self.flags)
        )

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.track_sha256 != self.track.sha256():
            raise ValueError("track_sha256 is not the hash of the track")
        if self.results_sha256 != results_hash(self):
            raise ValueError("results_sha256 is not the hash of the results: the record was edited")
        if (self.status == "failed") != (self.failure is not None):
            raise ValueError("a failed record needs a failure, a complete one has none")
        if self.status == "complete":
            if self.aggregates is None or self.data is None or self.distilled is None:
                raise ValueError("a complete record needs data, distilled set and aggregates")
            if len(self.students) != self.track.students.count:
                raise ValueError("the number of students is not the track's")
            again = aggregate_students(self.students, self.track)
            if again != self.aggregates:
                raise ValueError("the aggregates are not those of the raw outcomes")
            if {len(unpack_bits(s.clean)) for s in self.students} != {
                self.data.evaluation_examples
            }:
                raise ValueError("the number of outcomes is not the number of examples")
        return self


def results_hash(record: Record) -> str:
    """Hash of everything in a record but its costs."""
    fields = record.model_dump(mode="json", exclude={"costs", "results_sha256"})
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _aggregate(values: Sequence[float], n_examples: int) -> AggregateInfo:
    summary = aggregate(values, n_examples)
    return AggregateInfo(
        mean=summary.mean,
        std=summary.std,
        low=summary.low,
        high=summary.high,
        values=tuple(summary.values),
        n_students=summary.n_students,
        n_examples=summary.n_examples,
    )


def aggregate_students(students: Sequence[StudentResult], track: Track) -> Aggregates:
    """The aggregates of raw outcomes.

    Raises:
        ValueError: a student lacks an attack at an eps of the ladder, or sizes differ.
    """
    ladder = list(track.threat.ladder)
    names = [attack.name for attack in track.attacks]
    clean, robust, single = [], [], []
    size = len(unpack_bits(students[0].clean))
    for student in students:
        bits = {(r.attack, r.eps): unpack_bits(r.robust) for r in student.attacks}
        if set(bits) != {(name, eps) for name in names for eps in ladder}:
            raise ValueError(f"student {student.index} lacks outcomes of the track's suite")
        right = unpack_bits(student.clean)
        if {len(b) for b in [*bits.values(), right]} != {size}:
            raise ValueError(f"student {student.index}: outcomes differ in length")
        worst = worst_case(bits, right, ladder)
        clean.append(float(right.double().mean()))
        robust.append({eps: float(worst[eps].double().mean()) for eps in ladder})
        single.append({key: float(b.double().mean()) for key, b in bits.items()})
    table = tuple(
        RobustAggregate(eps=eps, accuracy=_aggregate([r[eps] for r in robust], size))
        for eps in ladder
    )
    return Aggregates(
        clean=_aggregate(clean, size),
        headline_eps=track.threat.headline,
        headline=next(row.accuracy for row in table if row.eps == track.threat.headline),
        robust=table,
        attacks=tuple(
            AttackAggregate(
                attack=name, eps=eps, accuracy=_aggregate([s[name, eps] for s in single], size)
            )
            for name in names
            for eps in ladder
        ),
    )


def make_record(**fields: Any) -> Record:
    """A validated record; `results_sha256` is computed here."""
    draft = Record.model_construct(**fields, results_sha256="0" * 64)
    return Record(**fields, results_sha256=results_hash(draft))


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically, keys sorted."""
    write_json(path, record.model_dump(mode="json"))


def read_record(path: Path) -> Record:
    """Read and validate a record of any schema version.

    Raises:
        UsageError: missing, not JSON, or not a record; the message names the keys.
    """
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path}: schema_version {version!r} is not known here; update robustdd")
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'record'}: {item['msg']}"
            for item in error.errors()[:5]
        )
        raise UsageError(f"{path} is not a valid record: {problems}") from error
    except UsageError as error:
        raise UsageError(f"{path} is not a valid record: {error}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a record."""
    schema = Record.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"robustdd-bench record, schema version {SCHEMA_VERSION}"
    return schema

"""Records: what a run leaves behind, as one validated JSON file.

A record holds raw outcomes (which examples each student got right, with and without each attack);
every aggregate in it can be computed from them again, and reading a record does so. Unknown keys
are forbidden and numbers are finite. `schema_version` rises with any change of meaning; old
versions stay loadable.

A record may come from a stranger: what it says of itself (hashes, run id, aggregates, counts) is
computed again when it is read, and names that become folders are held to a pattern.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustdd_bench import __version__
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import first_bits, unpack_bits, worst_case
from robustdd_bench.evaluation.statistics.means import aggregate
from robustdd_bench.files import parse_json, write_json
from robustdd_bench.identity import added_fields
from robustdd_bench.protocol.tracks import MAX_RECORD, Track
from robustdd_bench.records.parts import (
    AggregateInfo,
    Aggregates,
    AttackAggregate,
    AttackInfo,
    Costs,
    DataInfo,
    Failure,
    Flag,
    MethodInfo,
    OverlapInfo,
    RecordPart,
    RobustAggregate,
    SetInfo,
    Sha256,
    StudentResult,
)
from robustdd_bench.records.plan import Plan, PlannedAttack
from robustdd_bench.strict import read_bounded, validated

SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Version 2 adds attacks on survivors, at the headline eps or on a part of the split, what attacks
say of themselves, and sets reused from another run."""


class Record(RecordPart):
    """A run: complete with results, or failed with a reason."""

    ADDED: ClassVar = {"further": "0.2.0", "overlap": "0.2.0"}

    schema_version: Literal[1, 2] = 2
    """Rises with any change of meaning; older versions stay readable."""
    run_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The first digits of the plan's hash; the run's folder has this name."""
    status: Literal["complete", "failed"]
    split: Literal["test", "validation"]
    """What students are judged on; runs on the validation split are for tuning."""
    track: Track
    """The protocol, with every field."""
    track_sha256: str = Sha256
    method: MethodInfo
    attacks: tuple[AttackInfo, ...]
    """The track's suite, as it was configured."""
    seed: int = Field(ge=0)
    """The base of every seed of the run."""
    device: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)
    """CPU threads of a process; they decide the last bits."""
    torch: str
    """Its version."""
    harness: str
    """The version of robustdd-bench."""
    further: dict[str, Any] = Field(default_factory=dict)
    """Fields of the plan that came later and do not hold their default."""
    command: str
    """The call that repeats the run, with every setting that was changed."""
    data: DataInfo | None
    distilled: SetInfo | None
    overlap: OverlapInfo | None = None
    """Copies of other images in the set; null of references and in records of older versions."""
    students: tuple[StudentResult, ...]
    aggregates: Aggregates | None
    flags: tuple[Flag, ...]
    """Sanity checks; every student has the same ones."""
    failure: Failure | None
    """Why a run failed; null where it did not."""
    results_sha256: str = Sha256
    """Hash of everything but `costs` and itself."""
    costs: Costs
    """Times, memory, machine; no part of the result."""

    @property
    def given(self) -> bool:
        """No method made its set here: `robustdd evaluate` read it from a file."""
        return self.method.plugin == "builtin" or self.method.name == "given"

    @property
    def publishable(self) -> bool:
        """Complete, on the test split, every check passed, no copy of a test image."""
        return (
            self.status == "complete"
            and self.split == "test"
            and (self.overlap is None or self.overlap.exact_test == 0)
            and all(flag.passed for flag in self.flags)
        )

    @property
    def remarks(self) -> list[str]:
        """What attacks say of their own results, each once."""
        return sorted(
            {
                f"{result.attack}: {text}"
                for student in self.students
                for result in student.attacks
                for text in result.warnings
            }
        )

    @property
    def command_to_repeat(self) -> str:
        """The call that repeats the run bit for bit, on the same kind of machine.

        Records from before there were compiled kernels name no `--compile`: they did without.
        """
        if "--compile" in shlex.split(self.command):
            return self.command
        return f"{self.command} --compile off"

    def plan(self) -> Plan:
        """The plan the run was made from; its command names every setting.

        Raises:
            ValueError: it has fields that this version does not know.
        """
        unknown = sorted(self.further.keys() - added_fields(Plan).keys())
        if unknown:
            raise ValueError(
                f"the plan has fields that robustdd-bench {__version__} does not know "
                f"({', '.join(unknown)}); install a newer version"
            )
        method = self.method
        return Plan(
            method=method.name,
            plugin=method.plugin,
            distribution=method.distribution,
            version=method.version,
            preset=method.preset,
            overrides=method.config,
            config=method.config,
            track=self.track,
            track_source=self.track.name,
            attacks=tuple(PlannedAttack(**attack.model_dump()) for attack in self.attacks),
            seed=self.seed,
            split=self.split,
            device=self.device,
            threads=self.threads,
            torch=self.torch,
            harness=self.harness,
            **self.further,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.track_sha256 != self.track.sha256():
            raise ValueError("track_sha256 is not the hash of the track")
        if self.run_id != self.plan().run_id():
            raise ValueError("run_id is not the hash of the plan (method, track, seed, ...)")
        if self.results_sha256 != results_hash(self):
            raise ValueError("results_sha256 is not the hash of the results: the record was edited")
        _check_command(self.command, self.method.name)
        if [a.name for a in self.attacks] != [a.name for a in self.track.attacks]:
            raise ValueError("the attacks are not the track's")
        if (self.status == "failed") != (self.failure is not None):
            raise ValueError("a failed record needs a failure, a complete one has none")
        if self.status == "complete":
            if self.aggregates is None or self.data is None or self.distilled is None:
                raise ValueError("a complete record needs data, distilled set and aggregates")
            _check_set(self.distilled, self.data, self)
            trained = self.distilled.training_images
            if self.overlap is not None and self.overlap.images != trained:
                raise ValueError("overlap.images is not the number of images of the set")
            _check_students(self.students, self.data, self.track)
            _check_flags(self.flags, len(self.students))
            again = aggregate_students(self.students, self.track)
            if again != self.aggregates:
                raise ValueError("the aggregates are not those of the raw outcomes")
        return self


def _check_command(command: str, method: str) -> None:
    """Raise ValueError unless the command is one call of this program: people copy it."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words[:4] != ["robustdd", "run", "--method", method] or shlex.join(words) != command:
        raise ValueError("command is not a single call of `robustdd run` with this method")


def _check_set(found: SetInfo, data: DataInfo, record: Record) -> None:
    """Raise ValueError if the distilled set is not what track and data allow."""
    if len(found.images_per_class) != data.num_classes or sum(found.images_per_class) != (
        found.images
    ):
        raise ValueError("images_per_class does not add up to the images of the set")
    if data.dataset != record.track.data.dataset:
        raise ValueError("the dataset is not the track's")
    if not record.method.reference and found.images > data.num_classes * record.track.data.ipc:
        raise ValueError("the set has more images than the track allows")


def _check_students(students: Sequence[StudentResult], data: DataInfo, track: Track) -> None:
    """Raise ValueError if raw outcomes are missing, doubled or contradict one another."""
    if len(students) != track.students.count:
        raise ValueError("the number of students is not the track's")
    if [student.index for student in students] != list(range(len(students))):
        raise ValueError("the students are not numbered 0, 1, ...")
    for student in students:
        who = f"student {student.index}"
        clean = unpack_bits(student.clean)
        if len(clean) != data.evaluation_examples:
            raise ValueError(f"{who}: the number of outcomes is not the number of examples")
        suite = [(result.attack, result.eps) for result in student.attacks]
        if len(set(suite)) != len(suite):
            raise ValueError(f"{who}: an attack at an eps stands there twice")
        for result in student.attacks:
            robust = unpack_bits(result.robust)
            where = f"{who}, {result.attack} at eps {result.eps:g}"
            if len(robust) != len(clean):
                raise ValueError(f"{where}: the number of outcomes is not the number of examples")
            if bool((robust & ~clean).any()):
                raise ValueError(f"{where}: an example is right under attack but not without")
            tried = clean if result.tried is None else unpack_bits(result.tried)
            if len(tried) != len(clean) or bool((tried & ~clean).any()):
                raise ValueError(f"{where}: an example was tried that is wrong without an attack")
            if result.broken != int((tried & ~robust).sum()):
                raise ValueError(f"{where}: broken is not the number of examples that fell")
        _check_suite(student, clean, track)


def _check_suite(student: StudentResult, clean: Tensor, track: Track) -> None:
    """Raise ValueError unless each attack was tried on the examples that the track names."""
    standing = dict.fromkeys(track.threat.ladder, clean)
    outcomes = {(result.attack, result.eps): result for result in student.attacks}
    for spec in track.attacks:
        for eps in track.levels(spec):
            where = f"student {student.index}, {spec.name} at eps {eps:g}"
            result = outcomes.get((spec.name, eps))
            if result is None:
                raise ValueError(
                    f"student {student.index} lacks outcomes of the track's suite: "
                    f"{spec.name} at eps {eps:g}"
                )
            before = clean if spec.on == "all" else standing[eps]
            expected = first_bits(before, spec.examples)
            tried = clean if result.tried is None else unpack_bits(result.tried)
            robust = unpack_bits(result.robust)
            if not torch.equal(tried, expected):
                raise ValueError(f"{where}: it was not tried on the examples that the track names")
            if bool((robust & ~before).any()) or bool((before & ~tried & ~robust).any()):
                raise ValueError(f"{where}: an outcome is not that of an example that was tried")
            for larger in track.threat.ladder:
                if larger >= eps:
                    standing[larger] = standing[larger] & robust


def _check_flags(flags: Sequence[Flag], students: int) -> None:
    """Raise ValueError unless every student has the same checks: none may have been left out."""
    names = [[flag.name for flag in flags if flag.student == index] for index in range(students)]
    if not names[0] or any(found != names[0] for found in names):
        raise ValueError("flags: every student needs the same sanity checks")
    if len(set(names[0])) != len(names[0]) or sum(map(len, names)) != len(flags):
        raise ValueError("flags: a check stands there twice, or for a student that is not there")


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
    suite = [(attack, eps) for attack in track.attacks for eps in track.levels(attack)]
    clean, robust, single = [], [], []
    size = len(unpack_bits(students[0].clean))
    for student in students:
        bits = {(r.attack, r.eps): unpack_bits(r.robust) for r in student.attacks}
        if set(bits) != {(attack.name, eps) for attack, eps in suite}:
            raise ValueError(f"student {student.index} lacks outcomes of the track's suite")
        right = unpack_bits(student.clean)
        if {len(b) for b in [*bits.values(), right]} != {size}:
            raise ValueError(f"student {student.index}: outcomes differ in length")
        worst = worst_case(bits, right, ladder)
        clean.append(float(right.double().mean()))
        robust.append({eps: float(worst[eps].double().mean()) for eps in ladder})
        single.append(
            {
                (attack.name, eps): float(bits[attack.name, eps][: attack.examples].double().mean())
                for attack, eps in suite
            }
        )
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
                attack=attack.name,
                eps=eps,
                accuracy=_aggregate(
                    [s[attack.name, eps] for s in single], min(size, attack.examples or size)
                ),
            )
            for attack, eps in suite
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
    content = read_bounded(path, "a valid record", MAX_RECORD)
    value = parse_json(content, path)
    if not isinstance(value, dict) or "schema_version" not in value:
        raise UsageError(f"{path} is not a record: it has no schema_version")
    version = value["schema_version"]
    if version not in READABLE or isinstance(version, bool):
        shown = repr(version)[:20]
        raise UsageError(
            f"{path}: schema_version {shown} is not known here (this is {SCHEMA_VERSION}); "
            "update robustdd-bench"
        )
    return validated(Record, content, path, "a valid record")


def json_schema() -> dict[str, Any]:
    """JSON Schema of a record."""
    schema = Record.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"robustdd-bench record, schema version {SCHEMA_VERSION}"
    return schema

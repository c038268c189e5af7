"""Tracks: versioned protocols. Everything but the distilled set is fixed by the track.

A track is a TOML file, embedded, of a plugin, or named by its path; every record holds its track
whole. The model below forbids unknown keys, so a misspelt one is an error that names file, key and
reason.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from robustdd_bench.config import problem
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.filenames import RECORD_FILE, is_toml
from robustdd_bench.files import parse_json
from robustdd_bench.guard import guard, plain_text, told
from robustdd_bench.plugins import Registry
from robustdd_bench.strict import StrictModel, read_bounded

MAX_RECORD = 64 * 2**20
MAX_SEED = 2**63 - 1


def parse_eps(value: object) -> object:
    """Accept "8/255" as well as a number."""
    if isinstance(value, str):
        numerator, slash, denominator = value.partition("/")
        try:
            return float(numerator) / float(denominator) if slash else float(value)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction like '8/255'") from None
    return value


Eps = Annotated[float, Field(gt=0, le=100), BeforeValidator(parse_eps)]


def eps_label(eps: float) -> str:
    """How an eps is written: 8/255 where it is one, else decimals."""
    scaled = eps * 255
    if (
        abs(scaled - round(scaled)) < 1e-6
        and round(scaled) > 0
        and abs(eps * 100 - round(eps * 100)) > 1e-9
    ):
        return f"{round(scaled)}/255"
    return f"{eps:.2f}" if abs(eps * 100 - round(eps * 100)) < 1e-9 else f"{eps:.4g}"


class DataSpec(StrictModel):
    """Which images, and how they are split."""

    dataset: str
    """Name of a registered dataset."""
    ipc: int = Field(ge=1, le=100_000)
    """Images per class of the distilled set."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=0.9)
    """Share of each class's training images that `--validate` evaluates on."""
    split_seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the validation split (and of the test split, where the track makes one)."""
    flip: bool = True
    """Whether a mirrored image keeps its label."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the dataset's loader."""


class NetworkSpec(StrictModel):
    """Which network."""

    name: str = "convnet"
    options: dict[str, Any] = Field(default_factory=dict)


class PreprocessingSpec(StrictModel):
    """See `robustdd_bench.protocol.preprocessing.Preprocessing`."""

    kind: Literal["none", "normalise", "zca"] = "none"
    mean: tuple[Annotated[float, Field(ge=-1000, le=1000)], ...] = ()
    std: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = ()
    epsilon: float = Field(default=0.1, gt=0, le=1000)

    @model_validator(mode="after")
    def _statistics(self) -> PreprocessingSpec:
        if self.kind == "normalise" and (not self.mean or len(self.mean) != len(self.std)):
            raise ValueError("normalise needs `mean` and `std`, one value a channel")
        return self


class AdversarialSpec(StrictModel):
    """Adversarial training of the students, in the norm of the track's threat model."""

    flavour: Literal["pgd", "trades"] = "pgd"
    """"pgd": cross-entropy of the adversarial examples (Madry et al. 2018); "trades": of the
    images, plus `beta` times the divergence between both (Zhang et al. 2019)."""
    eps: Eps
    steps: int = Field(default=10, ge=1, le=10_000)
    """Steps of the adversary, from a random start."""
    relative_step: float = Field(default=0.25, gt=0, le=1000)
    """Size of a step as a share of eps (2/255 of 8/255)."""
    beta: float = Field(default=6.0, ge=0, le=1e6)
    """Weight of the divergence of TRADES."""


class TeachingSpec(StrictModel):
    """Students that are taught by the teacher of a set, view by view.

    Every view (augmented, and mixed as the recipe says) is labelled by the teacher of the set:
    q = softmax(teacher(view) / temperature). A set without a teacher is trained on with its own
    labels, mixed in the same shares as its images.
    """

    temperature: float = Field(default=20.0, gt=0, le=1000)
    """Of teacher and student."""
    loss: Literal["kl", "cross-entropy"] = "kl"
    """"kl": temperature**2 KL(q || p), p = softmax(student(view) / temperature) (Hinton et al.
    2015); "cross-entropy": - sum q log p with the student's own softmax, at temperature 1."""
    max_bytes: int = Field(default=64 * 2**20, ge=1, le=2**30)
    """What a stored teacher may weigh."""


class MixSpec(StrictModel):
    """Mixing of the images of a batch with one another, one share lambda a batch."""

    kind: Literal["cutmix", "mixup"] = "cutmix"
    """"cutmix": a rectangle of another image (Yun et al. 2019); "mixup": lambda x + (1 - lambda) x'
    (Zhang et al. 2018)."""
    alpha: float = Field(default=1.0, ge=0.05, le=4)
    """lambda is drawn from Beta(alpha, alpha)."""


class StudentSpec(StrictModel):
    """Training of the students: by default SGD with momentum, one drop of the learning rate."""

    ADDED: ClassVar = {
        "adversarial": "0.1.0",
        "own_rate": "0.1.0",
        "optimiser": "0.2.0",
        "schedule": "0.2.0",
        "mix": "0.2.0",
        "teaching": "0.2.0",
    }

    count: int = Field(default=5, ge=1, le=1000)
    epochs: int = Field(ge=1, le=1_000_000)
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Ceiling on the optimiser steps, for sets much larger than a distilled one."""
    batch_size: int = Field(default=256, ge=1, le=1_000_000)
    learning_rate: float = Field(default=0.01, gt=0, le=1000)
    """Used unless the distilled set brings its own."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=100)
    drop_at: float = Field(default=0.5, gt=0, le=1)
    """Share of the training after which the learning rate is multiplied by `drop_factor`."""
    drop_factor: float = Field(default=0.1, gt=0, le=1)
    augmentation: str = "none"
    adversarial: AdversarialSpec | None = None
    """None: natural training."""
    own_rate: bool = True
    """Whether a set's own learning rate goes before the track's. Not where students are another
    architecture than the one it was learned on."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """"adamw" (Loshchilov and Hutter 2019) with betas .9 and .999; it has no `momentum`."""
    schedule: Literal["drop", "cosine"] = "drop"
    """"cosine": from the learning rate to 0, step by step, instead of the drop."""
    mix: MixSpec | None = None
    """None: images are not mixed."""
    teaching: TeachingSpec | None = None
    """None: students are trained on the labels of the set, though it has a teacher."""

    @model_validator(mode="after")
    def _natural(self) -> StudentSpec:
        if self.adversarial is not None and (self.teaching is not None or self.mix is not None):
            raise ValueError("students that are mixed or taught are trained naturally")
        return self


class ThreatSpec(StrictModel):
    """The threat model, and the ladder of eps at which robustness is measured."""

    norm: Literal["Linf", "L2"] = "Linf"
    ladder: tuple[Eps, ...] = Field(min_length=1, max_length=100)
    headline: Eps
    batch_size: int = Field(default=512, ge=1, le=1_000_000)

    @field_validator("ladder")
    @classmethod
    def _rising(cls, ladder: tuple[float, ...]) -> tuple[float, ...]:
        if list(ladder) != sorted(set(ladder)):
            raise ValueError("the ladder must rise, each eps once")
        return ladder

    @model_validator(mode="after")
    def _on_ladder(self) -> ThreatSpec:
        if self.norm == "Linf" and self.ladder[-1] > 1:
            raise ValueError("no eps in Linf is larger than 1: pixels lie in [0,1]")
        if self.headline not in self.ladder:
            raise ValueError("the headline eps must be one of the ladder's")
        return self


class AttackSpec(StrictModel):
    """One attack of the suite."""

    ADDED: ClassVar = {"on": "0.1.0", "at": "0.1.0", "examples": "0.1.0"}

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    on: Literal["all", "survivors"] = "all"
    """Which examples it is tried on: all that are right without an attack, or only those that
    every attack before it in the suite, and it itself at a smaller eps, left standing."""
    at: Literal["ladder", "headline"] = "ladder"
    """At each eps of the ladder, or at the headline eps alone."""
    examples: int | None = Field(default=None, ge=1, le=10_000_000)
    """Only so many examples, from the start of the split; None: all."""


class Track(StrictModel):
    """A protocol. A change of any field is a new version, with a board of its own."""

    ADDED: ClassVar = {
        "student_network": "0.1.0",
        "base": "0.1.0",
        "ranked_seeds": "0.2.0",
        "seed_scheme": "0.2.0",
    }

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: int = Field(ge=1, le=1_000_000)
    summary: str
    base: str = ""
    """Name of the track whose seeds and presets it has, so that a method makes the same sets for
    both; "": its own."""
    seed_scheme: Literal[1, 2] = 1
    """Where a method's seeds come from. 1: from the run's seed, as those of students and attacks,
    which a method can then compute. 2: from a hash of the run's seed. A track has the scheme of its
    base, so that a method makes the same sets for both."""
    data: DataSpec
    network: NetworkSpec = NetworkSpec()
    """What the method distils with."""
    student_network: NetworkSpec | None = None
    """What the students are; None: `network`."""
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    students: StudentSpec
    threat: ThreatSpec
    attacks: tuple[AttackSpec, ...] = Field(min_length=1, max_length=100)
    ranked_seeds: int = Field(default=3, gt=0, le=1000)
    """How many seeds are ranked: 0, 1, 2, ... in this order. Other seeds are shown on the board and
    not ranked, so that nobody can choose the lucky ones."""

    @field_validator("attacks")
    @classmethod
    def _once(cls, attacks: tuple[AttackSpec, ...]) -> tuple[AttackSpec, ...]:
        names = [attack.name for attack in attacks]
        if len(set(names)) != len(names):
            raise ValueError("each attack may stand in the suite once")
        return attacks

    @model_validator(mode="after")
    def _whole(self) -> Track:
        whole = [a for a in self.attacks if a.at == "ladder" and a.examples is None]
        if not whole:
            raise ValueError("one attack of the suite must be on all examples at every eps")
        if self.attacks[0].on == "survivors":
            raise ValueError("the first attack of a suite cannot be one on survivors")
        return self

    @property
    def family(self) -> str:
        """Name of the track whose seeds and presets it has."""
        return self.base or self.name

    def attack(self, name: str) -> AttackSpec:
        """What the suite says of an attack."""
        return next(spec for spec in self.attacks if spec.name == name)

    def levels(self, attack: AttackSpec) -> tuple[float, ...]:
        """The eps that an attack of the suite is run at."""
        return self.threat.ladder if attack.at == "ladder" else (self.threat.headline,)

    @property
    def id(self) -> str:
        """Name and version, e.g. "digits-ipc10@1"."""
        return f"{self.name}@{self.version}"

    def sha256(self) -> str:
        """Hash of every field, but for younger ones at their default."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_track(text: str, source: str) -> Track:
    """Read a track.

    Raises:
        UsageError: the text is not TOML, or not a track; the message names file, key and reason.
    """
    try:
        return _track(tomllib.loads(text), source)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from error


def _track(fields: Any, source: str) -> Track:
    try:
        return Track.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"key {problem(item)}" for item in error.errors())
        raise UsageError(f"{source}: {problems}") from error


def read_track_text(name: str, registry: Registry) -> tuple[str, str]:
    """Text and source of a registered track, or of a file if `name` ends in .toml."""
    if is_toml(name):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no track file {name}")
        try:
            return path.read_text(encoding="utf-8-sig"), name
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: not readable as text: {error}") from error
    entry = registry.get("tracks", name)
    package, _, file = entry.target.partition(":")
    try:
        with guard(entry.plugin, f"track {name!r}"):  # its package is imported
            text = (importlib.resources.files(package) / file).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError) as error:
        raise UsageError(
            f"plugin {entry.plugin!r}: cannot read track {name!r}: {plain_text(error)}"
        ) from error
    except Exception as error:
        raise PluginError(
            f"plugin {entry.plugin!r}: cannot read track {name!r}: {told(error)}"
        ) from error
    return text, file


def record_of(name: str) -> Path | None:
    """The record that a track is to be read from: `name`, or that of the run in the folder `name`.

    None for the name of a registered track, which has no separator in it, and for a .toml file.
    """
    path = Path(name)
    if path.name == RECORD_FILE:
        return path
    is_path = path.name != name and not is_toml(name)
    return path / RECORD_FILE if is_path else None


def source_name(name: str) -> str:
    """What names the track in a command: the registered name, or the file without its folders."""
    return RECORD_FILE if record_of(name) else Path(name).name


def recorded_track(path: Path) -> Track:
    """The track of a record, which need not be installed.

    Raises:
        UsageError: the file is missing or no record, or the track is not the one that was run.
    """
    record = parse_json(read_bounded(path, "a record", MAX_RECORD), path)
    if not isinstance(record, dict) or not isinstance(record.get("track"), dict):
        raise UsageError(f"{path} is not a record: it holds no track")
    track = _track(record["track"], f"{path}, track")
    if record.get("track_sha256") != track.sha256():
        raise UsageError(f"{path}: track_sha256 is not the hash of the track")
    return track


def load_track(name: str, registry: Registry) -> Track:
    """The track of that name, of that .toml file, or of that record or run.

    Raises:
        UsageError: unknown name, missing file or ill-formed track.
    """
    record = record_of(name)
    if record is not None:
        return recorded_track(record)
    text, source = read_track_text(name, registry)
    track = parse_track(text, source)
    if not is_toml(name) and track.name != name:
        raise UsageError(f"{source}: key name: is {track.name!r} but registered as {name!r}")
    return track

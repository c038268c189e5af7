"""The plan of a run: everything that decides its result, resolved before anything is computed.

The run id is a hash of the plan. Two calls with the same plan mean the same run, which is how an
interrupted run is found again; a change of any setting is another run in another folder. The
identity is a hash of less: of what the run is meant to measure, and not of the versions, the device
and the threads that it is measured with. Runs of one identity confirm one another.

Later fields of a plan, of a method's Config, of an attack's and of a track are part of neither
while they hold their default (`robustdd_bench.identity`).
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from robustdd_bench import __version__
from robustdd_bench.config import (
    all_settings,
    assignment,
    build_config,
    check_options,
    config_class,
    config_to_dict,
    parse_assignments,
)
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.filenames import RECORD_FILE, is_toml
from robustdd_bench.identity import added_fields, identity_fields
from robustdd_bench.plugins import Entry, Registry
from robustdd_bench.protocol.tracks import MAX_SEED, Track, load_track, source_name
from robustdd_bench.records.means import (
    check_device,
    check_threads,
    resolve_compile,
    resolve_device,
    resolve_threads,
    torch_version,
)
from robustdd_bench.records.presets import DEFAULT_PRESET, preset_name, preset_values

DEFAULT_TRACK = "digits-ipc10"
ORIGIN = frozenset({"preset", "overrides", "track_source"})
"""Where settings came from; only what they are is part of a run's id."""
MEANS = frozenset({"version", "device", "threads", "torch", "harness", "compile"})
"""With what a run is carried out; part of its id and not of its identity."""
GIVEN = Entry(
    "distillers",
    "given",
    "robustdd_bench.imports.external_set:GivenSet",
    "a set made elsewhere",
    "builtin",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAttack:
    """One attack of the suite, with its settings."""

    ADDED: ClassVar[Mapping[str, str]] = {}
    """Later fields, with the version in which each came."""

    name: str
    plugin: str
    version: str
    config: Mapping[str, Any]
    """Every setting, but for later ones with the value that earlier runs had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A resolved run."""

    ADDED: ClassVar[Mapping[str, str]] = {"compile": "0.2.0"}
    """Later fields, with the version in which each came."""

    method: str
    plugin: str
    distribution: str
    version: str
    """Version of the distribution the method comes from."""
    preset: str
    overrides: Mapping[str, Any]
    """What the call set; like the preset's name, not part of the run's identity."""
    config: Mapping[str, Any]
    """Every hyper-parameter of the method, but for later ones with the value that earlier runs
    had."""
    track: Track
    track_source: str
    """What follows --track: a registered name, or the name of a .toml file or record."""
    attacks: tuple[PlannedAttack, ...]
    seed: int
    split: str
    """"test", or "validation": a split carved from the training data, for tuning."""
    device: str
    """"cpu" or "cuda"."""
    threads: int
    """CPU threads of torch; sums are ordered by them, so they belong to the result."""
    torch: str
    harness: str
    """Version of robustdd-bench."""
    compile: bool = False
    """Whether compiled kernels compute; sums are ordered otherwise in them, so they
    belong to the result. Where they cannot be had, the run computes without and says so."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without later fields at their default."""
        return {name: _json_value(value) for name, value in identity_fields(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        values = dict(fields)
        values["track"] = Track.model_validate(values["track"])
        values["attacks"] = tuple(PlannedAttack(**attack) for attack in values["attacks"])
        return cls(**values)

    def further(self) -> dict[str, Any]:
        """The later fields that do not hold their default, as JSON values."""
        later = added_fields(type(self))
        return {name: value for name, value in self.to_dict().items() if name in later}

    def run_id(self) -> str:
        """The first 12 hex digits of the plan's hash.

        Where settings came from (preset, call, track file) is not in it, only what they are.
        """
        return _digest({k: v for k, v in self.to_dict().items() if k not in ORIGIN})

    def identity(self) -> str:
        """The first 12 hex digits of a hash of what the run is meant to measure.

        It is the method with its settings, the track with its suite, the seed and the split. Not
        in it are versions, the device and the threads: a run that differs in these alone measures
        the same thing again.
        """
        fields = {k: v for k, v in self.to_dict().items() if k not in ORIGIN | MEANS}
        fields["attacks"] = [
            {k: v for k, v in attack.items() if k != "version"} for attack in fields["attacks"]
        ]
        return _digest(fields)

    def folder(self, out: Path) -> Path:
        """Where the run lives under `out`."""
        return out / self.track.name / self.method / self.run_id()

    def recorded_command(self) -> str:
        """The call for a record: a file that others do not have gives way to the record itself.

        In the folder of the record anybody can call it: the record holds the track.
        """
        is_file = is_toml(self.track_source)
        return self.command(RECORD_FILE if is_file else None)

    def command(self, track: str | None = None) -> str:
        """The call that repeats the run.

        Args:
            track: what follows --track; by default what the call named.
        """
        words = ["robustdd", "run", "--method", self.method]
        words += ["--track", track or self.track_source]
        if self.preset != DEFAULT_PRESET:
            words += ["--preset", self.preset]
        words += ["--seed", str(self.seed), "--device", self.device]
        words += ["--threads", str(self.threads)]
        words += ["--compile", "on" if self.compile else "off"]
        if self.split == "validation":
            words.append("--validate")
        for key, value in sorted(self.overrides.items()):
            words += ["--set", assignment(key, value)]
        return shlex.join(words)


def _json_value(value: Any) -> Any:
    """A field of a plan as JSON."""
    if isinstance(value, Track):
        return value.model_dump(mode="json")
    if isinstance(value, PlannedAttack):
        return {name: _json_value(item) for name, item in identity_fields(value).items()}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return value


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_plan(
    registry: Registry,
    *,
    method: str,
    track: str = DEFAULT_TRACK,
    assignments: Sequence[str] | Mapping[str, Any] = (),
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    device: str = "auto",
    threads: int = 1,
    validate: bool = False,
    compile: str = "off",
    elsewhere: bool = False,
    loading: Callable[[], object] = lambda: None,
) -> Plan:
    """Resolve a call.

    Args:
        registry: what is installed.
        method: name of a registered distiller.
        track: name of a registered track, or the path of a .toml file, of a record or of a run.
        assignments: texts `key=value` for the method's configuration, or its values by key.
        preset: a named set of values for this track; assignments go before it.
        seed: base of every seed.
        device: "auto", "cpu", "cuda" or "cuda:1"; see `resolve_device`.
        threads: CPU threads; 0: torch's choice (OMP_NUM_THREADS, else the physical cores). One
            is the default: the result then does not depend on the number of cores, and networks
            this small gain a third from a second thread on an idle machine and lose tenfold on a
            busy one.
        validate: evaluate on a split carved from the training data.
        compile: "auto", "on" or "off": see `resolve_compile`.
        elsewhere: other machines compute: see `resolve_device`.
        loading: called before torch and the method's code are imported, once all is found right
            that can be told without them.

    Raises:
        UsageError: anything is unknown or out of range; one line says what and what to do.
        PluginError: a plugin does not load.
    """
    # Whatever can be told to be wrong without the method's code comes first.
    entry = method_entry(registry, method)
    if isinstance(assignments, Mapping):
        overrides = dict(assignments)
    else:
        overrides = parse_assignments(assignments)
    resolved = check_call(registry, track=track, seed=seed, device=device, threads=threads)
    loading()
    distiller = entry.load()
    owner = f"method {method!r}"
    settings_class = config_class(distiller, owner)
    preset = preset_name(distiller, preset)
    named = preset_values(distiller, preset, resolved, entry.plugin)
    try:
        build_config(settings_class, named, f"preset {preset!r}")
    except UsageError as error:
        raise PluginError(f"plugin {entry.plugin!r}: {owner}, {error}") from error
    config = build_config(settings_class, {**named, **overrides}, owner)
    check_track_options(resolved, registry)
    settings = all_settings(config)
    device = resolve_device(device, elsewhere=elsewhere)
    info = registry.plugins[entry.plugin]
    return Plan(
        method=method,
        plugin=entry.plugin,
        distribution=info.distribution,
        version=info.version,
        preset=preset,
        overrides={key: settings[key] for key in overrides},
        config=config_to_dict(config),
        track=resolved,
        track_source=source_name(track),
        attacks=plan_attacks(resolved, registry),
        seed=seed,
        split="validation" if validate else "test",
        device=device,
        threads=resolve_threads(threads),
        torch=torch_version(),
        harness=__version__,
        compile=resolve_compile(compile, device, elsewhere=elsewhere),
    )


def check_call(registry: Registry, *, track: str, seed: int, device: str, threads: int) -> Track:
    """What can be told of a call without torch.

    Returns:
        The track.

    Raises:
        UsageError: the track, the seed, the device or the threads cannot be.
    """
    if not 0 <= seed <= MAX_SEED:
        what = "not be negative" if seed < 0 else f"be at most {MAX_SEED}"
        raise UsageError(f"--seed must {what}, not {seed}")
    check_device(device)
    check_threads(threads)
    return resolve_track(track, registry)


def resolve_track(name: str, registry: Registry) -> Track:
    """The track of that name or path; all that it names is registered.

    Raises:
        UsageError: it is unknown, missing or ill-formed, or names what is not registered.
    """
    track = load_track(name, registry)
    registry.get("datasets", track.data.dataset)
    registry.get("networks", track.network.name)
    if track.student_network is not None:
        registry.get("networks", track.student_network.name)
    for spec in track.attacks:
        registry.get("attacks", spec.name)
    return track


def check_track_options(track: Track, registry: Registry) -> None:
    """Hold the options of a track's dataset and networks against what these take.

    Raises:
        UsageError: one is unknown, of the wrong type or out of range.
        PluginError: the code of a dataset or network does not load.
    """
    dataset = registry.get("datasets", track.data.dataset).load()
    check_options(dataset, track.data.options, f"track {track.name!r}, data.options")
    for key, spec in (("network", track.network), ("student_network", track.student_network)):
        if spec is not None:
            builder = registry.get("networks", spec.name).load()
            check_options(builder, spec.options, f"track {track.name!r}, {key}.options")


def plan_attacks(track: Track, registry: Registry) -> tuple[PlannedAttack, ...]:
    """The suite of a track, as the attacks installed here configure it.

    Raises:
        UsageError: an attack is not installed, cannot attack in the track's norm, or is not
            configured as it can be.
        PluginError: an attack does not load.
    """
    attacks = []
    for spec in track.attacks:
        attack = registry.get("attacks", spec.name)
        kind = attack.load()
        norms = getattr(kind, "norms", (track.threat.norm,))
        if track.threat.norm not in norms:
            raise UsageError(
                f"track {track.name!r}: attack {spec.name!r} cannot attack in "
                f"{track.threat.norm}; it knows {', '.join(norms)}"
            )
        configured = build_config(
            config_class(kind, f"attack {spec.name!r}"),
            spec.config,
            f"track {track.name!r}, attack {spec.name!r}",
        )
        attacks.append(
            PlannedAttack(
                name=spec.name,
                plugin=attack.plugin,
                version=registry.plugins[attack.plugin].version,
                config=config_to_dict(configured),
            )
        )
    return tuple(attacks)


def method_entry(registry: Registry, name: str) -> Entry:
    """Where a method is; "given" is a set made elsewhere, which no plugin has to register.

    Raises:
        UsageError: nothing of that name is registered.
    """
    return GIVEN if name == GIVEN.name else registry.get("distillers", name)

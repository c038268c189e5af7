"""The plan of a run: everything that decides its result, resolved before anything is computed.

The run id is a hash of the plan. Two calls with the same plan mean the same run, which is how an
interrupted run is found again; a change of any setting is another run in another folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench import __version__
from robustdd_bench.config import build_config, config_to_dict, parse_assignments
from robustdd_bench.errors import PluginError, UsageError, unknown_name
from robustdd_bench.plugins import Entry, Registry
from robustdd_bench.protocol.tracks import Track, load_track

DEFAULT_TRACK = "digits-ipc10"
DEFAULT_PRESET = "default"
GIVEN = Entry(
    "distillers", "given", "robustdd_bench.runs.given:GivenSet", "a set made elsewhere", "builtin"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAttack:
    """One attack of the suite, with every setting."""

    name: str
    plugin: str
    version: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A resolved run."""

    method: str
    plugin: str
    distribution: str
    version: str
    """Version of the distribution the method comes from."""
    preset: str
    overrides: Mapping[str, Any]
    """What the call set; like the preset's name, not part of the run's identity."""
    config: Mapping[str, Any]
    """Every hyper-parameter of the method."""
    track: Track
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

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "method": self.method,
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "preset": self.preset,
            "overrides": dict(self.overrides),
            "config": dict(self.config),
            "track": self.track.model_dump(mode="json"),
            "attacks": [
                {"name": a.name, "plugin": a.plugin, "version": a.version, "config": dict(a.config)}
                for a in self.attacks
            ],
            "seed": self.seed,
            "split": self.split,
            "device": self.device,
            "threads": self.threads,
            "torch": self.torch,
            "harness": self.harness,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        values = dict(fields)
        values["track"] = Track.model_validate(values["track"])
        values["attacks"] = tuple(PlannedAttack(**attack) for attack in values["attacks"])
        return cls(**values)

    def run_id(self) -> str:
        """The first 12 hex digits of the plan's hash.

        Where settings came from (preset, call) is not in it, only what they are.
        """
        origin = ("preset", "overrides")
        fields = {key: value for key, value in self.to_dict().items() if key not in origin}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, out: Path) -> Path:
        """Where the run lives under `out`."""
        return out / self.track.name / self.method / self.run_id()

    def command(self) -> str:
        """The call that repeats the run."""
        changed = [
            shlex.join(["--set", f"{key}={_assigned(value)}"])
            for key, value in sorted(self.overrides.items())
        ]
        parts = ["robustdd run", f"--method {self.method}", f"--track {self.track.name}"]
        if self.preset != DEFAULT_PRESET:
            parts.append(shlex.join(["--preset", self.preset]))
        parts += [f"--seed {self.seed}", f"--device {self.device}"]
        if self.split == "validation":
            parts.append("--validate")
        return " ".join(parts + changed)


def _assigned(value: Any) -> str:
    """A value as `--set` reads it."""
    return "none" if value is None else json.dumps(value, allow_nan=False)


def make_plan(
    registry: Registry,
    *,
    method: str,
    track: str = DEFAULT_TRACK,
    assignments: Sequence[str] = (),
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    device: str = "auto",
    threads: int = 0,
    validate: bool = False,
) -> Plan:
    """Resolve a call.

    Args:
        registry: what is installed.
        method: name of a registered distiller.
        track: name of a registered track, or the path of a .toml file.
        assignments: texts `key=value` for the method's configuration.
        preset: a named set of values for this track; assignments go before it.
        seed: base of every seed.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; 0: torch's default (OMP_NUM_THREADS, else the physical cores).
        validate: evaluate on a split carved from the training data.

    Raises:
        UsageError: anything is unknown or out of range; one line says what and what to do.
        PluginError: a plugin does not load.
    """
    entry = method_entry(registry, method)
    resolved = load_track(track, registry)
    registry.get("datasets", resolved.data.dataset)
    registry.get("networks", resolved.network.name)
    overrides = parse_assignments(assignments)
    if seed < 0:
        raise UsageError(f"--seed must not be negative, not {seed}")
    distiller = entry.load()
    owner = f"method {method!r}"
    named = preset_values(distiller, preset, resolved, entry.plugin)
    config = build_config(config_class(distiller, owner), {**named, **overrides}, owner)
    settings = config_to_dict(config)
    info = registry.plugins[entry.plugin]
    attacks = []
    for spec in resolved.attacks:
        attack = registry.get("attacks", spec.name)
        configured = build_config(
            config_class(attack.load(), f"attack {spec.name!r}"),
            spec.config,
            f"track {resolved.name!r}, attack {spec.name!r}",
        )
        attacks.append(
            PlannedAttack(
                name=spec.name,
                plugin=attack.plugin,
                version=registry.plugins[attack.plugin].version,
                config=config_to_dict(configured),
            )
        )
    return Plan(
        method=method,
        plugin=entry.plugin,
        distribution=info.distribution,
        version=info.version,
        preset=preset,
        overrides={key: settings[key] for key in overrides},
        config=settings,
        track=resolved,
        attacks=tuple(attacks),
        seed=seed,
        split="validation" if validate else "test",
        device=resolve_device(device),
        threads=resolve_threads(threads),
        torch=importlib.metadata.version("torch"),
        harness=__version__,
    )


def method_entry(registry: Registry, name: str) -> Entry:
    """Where a method is; "given" is a set made elsewhere, which no plugin has to register.

    Raises:
        UsageError: nothing of that name is registered.
    """
    return GIVEN if name == GIVEN.name else registry.get("distillers", name)


def config_class(plugged: Any, owner: str) -> type[Any]:
    """The nested `Config` of a distiller or attack.

    Raises:
        PluginError: there is none.
    """
    config = getattr(plugged, "Config", None)
    if not isinstance(config, type):
        raise PluginError(f"{owner} has no nested dataclass `Config`")
    return config


def preset_values(distiller: Any, preset: str, track: Track, plugin: str) -> dict[str, Any]:
    """The values that a method's presets.toml names for a track.

    A preset is a table of tables: `[<preset>.<track>]`, else `[<preset>.<dataset>]`.

    Raises:
        UsageError: the method has no preset of that name.
        PluginError: the file is damaged.
    """
    path = getattr(distiller, "PRESETS", None)
    presets: dict[str, Any] = {}
    if path is not None:
        try:
            presets = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise PluginError(f"plugin {plugin!r}: cannot read its presets: {error}") from error
    if preset not in presets:
        if preset == DEFAULT_PRESET:
            return {}
        raise unknown_name("preset", preset, [*presets, DEFAULT_PRESET])
    table = presets[preset]
    return dict(table.get(track.name, table.get(track.data.dataset, {})))


def resolve_device(device: str) -> str:
    """Turn "auto", "cpu" or "cuda" into a device.

    Returns:
        "cpu" or "cuda".

    Raises:
        UsageError: CUDA is asked for and cannot be used.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise unknown_name("device", device, ["auto", "cpu", "cuda"])
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("no CUDA device can be used here; see `robustdd doctor`, or --device cpu")
    return "cuda" if available and device != "cpu" else "cpu"


def resolve_threads(threads: int) -> int:
    """How many CPU threads torch shall use."""
    import torch

    if threads < 0 or threads > 4 * (os.cpu_count() or 1):
        raise UsageError(f"--threads must lie in 0..{4 * (os.cpu_count() or 1)}, not {threads}")
    return threads or torch.get_num_threads()

"""What the presets of a method are for, and what a run with each of them costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.errors import RobustDDError
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import load_track
from robustdd_bench.records.plan import make_plan, method_entry
from robustdd_bench.records.presets import DEFAULT_PRESET, preset_tables, table_names
from robustdd_bench.sweeps.estimate import Estimate, History, estimate


@dataclass(frozen=True, slots=True)
class PresetCost:
    """A preset of a method, for tracks."""

    preset: str
    tracks: str
    """The name of a track, of the track it is a variant of, of a dataset or of a group of them:
    whose tracks it is for; "" for the method's own defaults, which are for all others."""
    example: str
    """One of these tracks, the one that the cost is of; "" where none is installed."""
    cost: Estimate | None
    """None where it is not known."""


def preset_costs(registry: Registry, method: str, device: str = "auto") -> Iterator[PresetCost]:
    """Every preset of a method, with what a whole run by it takes on this machine.

    Args:
        registry: what is installed.
        method: name of a registered distiller.
        device: on which.

    Raises:
        UsageError: unknown name.
        PluginError: the presets are damaged.
    """
    entry = method_entry(registry, method)
    found = preset_tables(entry.load(), entry.plugin)
    for preset, tables in found.items():
        for tracks in tables:
            example = _example(registry, tracks)
            cost = _cost(registry, method, preset, example, device) if example else None
            yield PresetCost(preset, tracks, example, cost)
    yield PresetCost(DEFAULT_PRESET, "", "", None)


def _example(registry: Registry, name: str) -> str:
    """The track of a name; else the first of those that take its values from that name."""
    if name in registry.entries["tracks"]:
        return name
    for track in registry.names("tracks"):
        loaded = load_track(track, registry)
        if name in table_names(loaded):
            return track
    return ""


def _cost(registry: Registry, method: str, preset: str, track: str, device: str) -> Estimate | None:
    try:
        plan = make_plan(registry, method=method, track=track, preset=preset, device=device)
        return estimate(plan, History([]), Path(), registry)
    except RobustDDError:
        return None

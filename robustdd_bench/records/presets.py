"""Presets: named hyper-parameters of a method for tracks, in the `presets.toml` beside its code."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustdd_bench.errors import PluginError, UsageError, unknown_name
from robustdd_bench.protocol.imagenet.classes import dataset_group
from robustdd_bench.protocol.tracks import Track

DEFAULT_PRESET = "default"


def preset_name(distiller: Any, preset: str) -> str:
    """What a preset is called now; a method may rename one and still accept its former name."""
    aliases: Mapping[str, str] = getattr(distiller, "PRESET_ALIASES", {})
    return aliases.get(preset, preset)


def _read(distiller: Any, plugin: str) -> dict[str, Any]:
    path = getattr(distiller, "PRESETS", None)
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PluginError(f"plugin {plugin!r}: cannot read its presets: {error}") from error


def preset_tables(distiller: Any, plugin: str) -> dict[str, tuple[str, ...]]:
    """For each preset the tracks, their bases and the data sets that it has values for.

    Raises:
        PluginError: the file is damaged.
    """
    return {
        preset: tuple(tables) if isinstance(tables, dict) else ()
        for preset, tables in _read(distiller, plugin).items()
    }


def preset_values(distiller: Any, preset: str, track: Track, plugin: str) -> dict[str, Any]:
    """The values that a method's presets.toml names for a track.

    A preset is a table of tables: `[<preset>.<track>]`, else that of the track's base, else
    `[<preset>.<dataset>]`. The six ImageNet subsets share tables: for each of them
    `[<preset>.imagenet-subsets-ipc<N>]` and `[<preset>.imagenet-subsets]` come last. Where the
    preset "default" has none, the method's own defaults hold.

    Raises:
        UsageError: the method has no preset of that name, or none for this track.
        PluginError: the file is damaged.
    """
    preset = preset_name(distiller, preset)
    presets = _read(distiller, plugin)
    if preset != DEFAULT_PRESET and preset not in presets:
        raise unknown_name("preset", preset, {*presets, DEFAULT_PRESET})
    tables = presets.get(preset, {})
    for name in table_names(track):
        values = tables.get(name) if isinstance(tables, dict) else tables
        if values is None:
            continue
        if not isinstance(values, dict):
            raise PluginError(
                f"plugin {plugin!r}: its presets are damaged: [{preset}.{name}] must be a table"
            )
        return dict(values)
    if preset != DEFAULT_PRESET:
        raise UsageError(
            f"preset {preset!r} has no values for track {track.name!r}; it has them for "
            f"{', '.join(tables) or 'none'}"
        )
    return {}


def table_names(track: Track) -> list[str]:
    """The tables that may hold the values for a track; the first that is there counts."""
    names = [track.name, track.family, track.data.dataset]
    group = dataset_group(track.data.dataset)
    return names if group is None else [*names, f"{group}-ipc{track.data.ipc}", group]

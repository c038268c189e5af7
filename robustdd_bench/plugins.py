"""Finding plugins, and the lazy registry of what they offer.

Plugins are Python packages with an entry point in the group ``robustdd``. They are loaded one by
one: one that cannot be imported is named in a warning and the rest works. What they register are
targets such as ``"robustdd_mat.distiller:MAT"``, imported when first used.

Plugins are code: they run with the rights of the user who installed them.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from robustdd_bench import hookspecs
from robustdd_bench.errors import PluginError, PluginWarning, UsageError, unknown_name
from robustdd_bench.guard import guard, known_as, told
from robustdd_bench.registry import installed
from robustdd_bench.registry.names import NAME_PATTERN, refusal

__all__ = [
    "DISABLED_VARIABLE",
    "ENTRY_POINT_GROUP",
    "KINDS",
    "NAME_PATTERN",
    "SINGULAR",
    "Entry",
    "PluginInfo",
    "PluginManager",
    "PluginWarning",
    "Registry",
    "collect",
    "get_plugin_manager",
    "remarks",
]

ENTRY_POINT_GROUP = "robustdd"
OURS = "robustdd-bench"
DISABLED_VARIABLE = "ROBUSTDD_DISABLED_PLUGINS"
KINDS = ("distillers", "attacks", "datasets", "networks", "tracks", "executors")
SINGULAR = {
    "distillers": "method",
    "attacks": "attack",
    "datasets": "dataset",
    "networks": "network",
    "tracks": "track",
    "executors": "executor",
}


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One installed plugin: where it comes from, and whether it works."""

    name: str
    distribution: str
    version: str
    module: str
    status: str  # "loaded", "disabled" or "broken"
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered thing; `target` is imported by `load`."""

    kind: str
    name: str
    target: str
    summary: str
    plugin: str

    def load(self) -> Any:
        """Import the target.

        Raises:
            PluginError: the module does not import, or lacks the attribute.
        """
        module, _, attribute = self.target.partition(":")
        what = f"{SINGULAR[self.kind]} {self.name!r}"
        known_as(module, self.plugin)
        try:
            with guard(self.plugin, f"the import of {what}"):
                value = importlib.import_module(module)
                for part in attribute.split("."):
                    value = getattr(value, part)
        except Exception as error:
            raise PluginError(
                f"plugin {self.plugin!r}: cannot load {what} ({self.target}): {told(error)}"
            ) from error
        return value


@dataclass(frozen=True, slots=True)
class Registry:
    """Everything the loaded plugins registered, by kind and name."""

    entries: Mapping[str, Mapping[str, Entry]]
    plugins: Mapping[str, PluginInfo] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Sorted names of a kind."""
        return sorted(self.entries[kind])

    def get(self, kind: str, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UsageError: nothing of that name is registered; the message suggests the nearest.
        """
        try:
            return self.entries[kind][name]
        except KeyError:
            raise unknown_name(SINGULAR[kind], name, self.entries[kind]) from None


class PluginManager(pluggy.PluginManager):
    """Pluggy's manager, and what was found on the way, broken and disabled plugins included."""

    def __init__(self, project_name: str) -> None:
        super().__init__(project_name)
        self.infos: dict[str, PluginInfo] = {}


def disabled_plugins() -> frozenset[str]:
    """Names in the variable ROBUSTDD_DISABLED_PLUGINS, separated by commas."""
    return frozenset(
        name.strip() for name in os.environ.get(DISABLED_VARIABLE, "").split(",") if name.strip()
    )


def get_plugin_manager(
    extra: Iterable[tuple[str, object]] = (), *, entry_points: bool = True
) -> PluginManager:
    """A plugin manager with the built-in plugin, the installed ones and `extra` (name, plugin).

    Every call makes a new one. What was found, broken plugins included, is in `.infos`.
    """
    manager = PluginManager("robustdd")
    manager.add_hookspecs(hookspecs)
    infos = manager.infos

    builtin = importlib.import_module("robustdd_bench.registry.builtin")
    _add(
        manager,
        PluginInfo("builtin", OURS, installed.version(OURS), builtin.__name__, ""),
        builtin,
    )
    disabled = disabled_plugins()
    if entry_points:
        for point in installed.entry_points(ENTRY_POINT_GROUP):
            info = PluginInfo(point.name, point.distribution, point.version, point.value, "")
            if point.name in disabled:
                infos[point.name] = _with(info, "disabled")
                continue
            _refuse_twin(infos, info)  # the user has to choose
            known_as(point.value.partition(":")[0], point.name)
            try:
                with guard(point.name, "its import"):
                    plugin = point.load()
                _add(manager, info, plugin)
            except Exception as error:
                _leave_out(infos, info, told(error))
    for name, plugin in extra:
        _add(manager, PluginInfo(name, "unknown", "", getattr(plugin, "__name__", "?"), ""), plugin)
    return manager


def _leave_out(infos: dict[str, PluginInfo], info: PluginInfo, problem: str) -> None:
    """Mark a plugin as broken, and say so."""
    infos[info.name] = _with(info, "broken", problem)
    warnings.warn(
        f"plugin {info.name!r} ({info.distribution}) is left out: {problem}",
        PluginWarning,
        stacklevel=3,
    )


def _with(info: PluginInfo, status: str, problem: str = "") -> PluginInfo:
    return PluginInfo(info.name, info.distribution, info.version, info.module, status, problem)


def _refuse_twin(infos: Mapping[str, PluginInfo], info: PluginInfo) -> None:
    """Raise UsageError if another plugin of that name is loaded."""
    if info.name in infos and infos[info.name].status == "loaded":
        first = infos[info.name]
        raise UsageError(
            f"two plugins are called {info.name!r}: {first.module} ({first.distribution}) and "
            f"{info.module} ({info.distribution}); uninstall one"
        )


def _add(manager: PluginManager, info: PluginInfo, plugin: object) -> None:
    """Register one plugin and check its hooks; leave nothing behind if it is not valid."""
    infos = manager.infos
    _refuse_twin(infos, info)
    try:
        with guard(info.name, "its registration"):  # its attributes are looked at
            manager.register(plugin, name=info.name)
            manager.check_pending()
    except Exception:
        # A hook with a wrong signature is refused half-way, after others were taken.
        if manager.get_plugin(info.name) is plugin:
            manager.unregister(plugin)
        raise
    infos[info.name] = _with(info, "loaded")


def remarks(manager: PluginManager) -> dict[str, str]:
    """What plugins say of themselves, by their names; one that fails to say it is quoted."""
    found: dict[str, str] = {}
    for implementation in manager.hook.robustdd_remark.get_hookimpls():
        try:
            with guard(implementation.plugin_name, "robustdd_remark"):
                text = implementation.function()
                text = "" if text is None else " ".join(str(text).split())
        except Exception as error:
            text = f"robustdd_remark failed: {told(error)}"
        if text:
            found[implementation.plugin_name] = text
    return found


def collect(manager: PluginManager) -> Registry:
    """Ask every plugin what it registers.

    A plugin whose registration fails is named in a warning and marked as broken; nothing that it
    registered before is kept.

    Raises:
        UsageError: two plugins own one name of one kind; the message names both.
    """
    infos = manager.infos
    entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
    broken: set[str] = set()
    for kind in KINDS:
        hook = getattr(manager.hook, f"robustdd_register_{kind}")
        for implementation in hook.get_hookimpls():
            owner = implementation.plugin_name
            if owner in broken:
                continue
            conflicts: list[UsageError] = []

            def register(
                name: str,
                target: str,
                summary: str = "",
                *,
                kind: str = kind,
                owner: str = owner,
                conflicts: list[UsageError] = conflicts,
            ) -> None:
                entry = Entry(kind, str(name), str(target), str(summary), owner)
                try:
                    _check(entry, entries[kind])
                except UsageError as error:
                    conflicts.append(error)
                    raise
                entries[kind][entry.name] = entry

            try:
                with guard(owner, f"robustdd_register_{kind}"):
                    implementation.function(register=register)
            except Exception as error:
                if not conflicts:
                    broken.add(owner)
                    problem = f"robustdd_register_{kind} failed: {told(error)}"
                    _leave_out(infos, infos[owner], problem)
            if conflicts:
                raise conflicts[0]
    found = {
        kind: {name: entry for name, entry in sorted(items.items()) if entry.plugin not in broken}
        for kind, items in entries.items()
    }
    return Registry(found, infos)


def _check(entry: Entry, others: Mapping[str, Entry]) -> None:
    """Refuse a registration.

    Raises:
        ValueError: the name or target cannot be used.
        UsageError: the name is another plugin's, or would share a folder with another name.
    """
    what = f"{SINGULAR[entry.kind]} {entry.name!r}"
    choose = f"set {DISABLED_VARIABLE}={entry.plugin} (or {{}}) to choose"
    if entry.name in others:
        first = others[entry.name].plugin
        raise UsageError(
            f"{what} is registered by two plugins, {first!r} and {entry.plugin!r}; "
            f"{choose.format(first)}"
        )
    reason = refusal(entry.kind, entry.name)
    if reason is not None:
        raise ValueError(f"the name of {what} {reason}")
    for other in others.values():
        if other.name.lower() == entry.name.lower():
            text = f"{what} and {other.name!r} differ in case alone: on Windows and macOS they "
            text += "would share a folder"
            if other.plugin == entry.plugin:
                raise ValueError(text)
            raise UsageError(
                f"{text}; they are of the plugins {other.plugin!r} and {entry.plugin!r}; "
                f"{choose.format(other.plugin)}"
            )
    if ":" not in entry.target:
        raise ValueError(
            f"the target of {what} must read 'package.module:attribute', not {entry.target!r}"
        )

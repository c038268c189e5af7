"""What one call of `robustdd` shares between its commands: the plugins, found when first needed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import click

from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.guard import guard, told
from robustdd_bench.plugins import (
    PluginInfo,
    PluginManager,
    PluginWarning,
    Registry,
    collect,
    get_plugin_manager,
)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PluginCommands:
    """The commands that plugins add, and the names that two of them claim."""

    commands: Mapping[str, click.Command]
    conflicts: Mapping[str, str]
    """Name to a sentence that names both owners."""
    lines: Mapping[str, str | None]
    """Name to the line of `robustdd --help`; None where a command is hidden."""


class Session:
    """The plugins of one call."""

    @cached_property
    def manager(self) -> PluginManager:
        """The plugin manager; a broken plugin is named in a warning."""
        return get_plugin_manager()

    @cached_property
    def registry(self) -> Registry:
        """What the plugins register.

        Raises:
            UsageError: two plugins own one name.
        """
        return collect(self.manager)

    @property
    def infos(self) -> Mapping[str, PluginInfo]:
        """Every installed plugin, broken and disabled ones included."""
        return self.manager.infos

    @cached_property
    def plugin_commands(self) -> PluginCommands:
        """The commands of the plugins; what is broken is named in a warning and left out."""
        commands: dict[str, click.Command] = {}
        conflicts: dict[str, str] = {}
        owners: dict[str, str] = {}
        lines: dict[str, str | None] = {}
        try:
            manager = self.manager
        except RobustDDError as error:
            warnings.warn(str(error), PluginWarning, stacklevel=2)
            return PluginCommands({}, {}, {})
        for implementation in manager.hook.robustdd_register_commands.get_hookimpls():
            owner = implementation.plugin_name
            # Each plugin fills a group of its own, so one that fails half-way leaves nothing.
            own = click.Group("robustdd")
            try:
                with guard(owner, "robustdd_register_commands"):
                    implementation.function(**dict.fromkeys(implementation.argnames, own))
                    told_by = {
                        name: None if command.hidden else command.get_short_help_str(limit=60)
                        for name, command in own.commands.items()
                    }
            except Exception as error:
                warnings.warn(
                    f"plugin {owner!r}: its commands are left out: {told(error)}",
                    PluginWarning,
                    stacklevel=2,
                )
                continue
            for name, command in own.commands.items():
                if name in commands:
                    conflicts[name] = (
                        f"command {name!r} is registered by two plugins, {owners[name]!r} and "
                        f"{owner!r}; set ROBUSTDD_DISABLED_PLUGINS={owner} (or {owners[name]}) "
                        "to choose"
                    )
                else:
                    commands[name], owners[name] = _guarded(command, owner), owner
                    lines[name] = told_by[name]
        for name, sentence in conflicts.items():
            del commands[name]
            warnings.warn(sentence, PluginWarning, stacklevel=2)
        return PluginCommands(commands, conflicts, lines)

    def plugin_command(self, name: str) -> click.Command | None:
        """The command of that name that a plugin adds, if there is one.

        Raises:
            UsageError: two plugins claim the name.
        """
        found = self.plugin_commands
        if name in found.conflicts:
            raise UsageError(found.conflicts[name])
        return found.commands.get(name)

    def blame(self, error: BaseException) -> str | None:
        """The plugin in whose code an exception was raised, the innermost one, or None."""
        if "manager" not in self.__dict__:  # no plugin was loaded, so none can be at fault
            return None
        owners: dict[str, str] = {}
        modules = [(info.module, name) for name, info in self.infos.items()]
        if "registry" in self.__dict__:
            for entries in self.registry.entries.values():
                modules += [(entry.target, entry.plugin) for entry in entries.values()]
        for target, name in modules:
            module = target.partition(":")[0]
            owners[module] = name
            owners.setdefault(module.partition(".")[0], name)
        found = None
        trace = error.__traceback__
        while trace is not None:
            module = str(trace.tb_frame.f_globals.get("__name__", ""))
            while module and module not in owners:
                module = module.rpartition(".")[0]
            if module.partition(".")[0] not in ("", "robustdd_bench"):
                found = owners[module]
            trace = trace.tb_next
        return found


def _guarded(command: click.Command, owner: str) -> click.Command:
    """The command: what it leaves changed is put back. It may write to stdout and exit."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            what = f"command {command.name!r}"
            with guard(owner, what, keep_stdout=True, passing=(SystemExit,)):
                return function(*args, **options)

        return call

    for name in ("make_context", "invoke"):
        setattr(command, name, around(getattr(command, name)))
    return command


def current_session(ctx: click.Context) -> Session:
    """The session of this call; a new one where there is none, as in a test of one command."""
    return ctx.ensure_object(Session)


def pass_session(function: Callable[..., Result]) -> Callable[..., Result]:
    """Give the command the session of this call as its first argument."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Result:
        return function(current_session(click.get_current_context()), *args, **options)

    return command

"""Groups of commands: an unknown name is one line with a suggestion; modules are imported late."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from robustdd_bench.cli.shared.session import current_session
from robustdd_bench.errors import unknown_name
from robustdd_bench.plugins import PluginWarning

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Group(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            UsageError: there is none of that name.
        """
        name = args[0]
        if (
            not ctx.resilient_parsing
            and not name.startswith("-")
            and self.get_command(ctx, name) is None
        ):
            raise unknown_name("command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is, and its line in `--help`, so that neither needs an import."""

    target: str
    """"package.module:command"."""
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class LazyGroup(Group):
    """The root group: built-in commands from a table, then the commands of the plugins.

    Args:
        table: name to command.
        name: name of the group.
        **options: as for `click.Group`.
    """

    def __init__(
        self, table: Mapping[str, LazyCommand], name: str | None = None, **options: object
    ) -> None:
        super().__init__(name, **options)  # type: ignore[arg-type]
        self.table = dict(table)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Built-in commands in the table's order, then those of plugins by name."""
        found = current_session(ctx).plugin_commands.commands
        for name in sorted(found.keys() & self.table.keys()):
            warnings.warn(
                f"command {name!r} is built in; that of a plugin is left out",
                PluginWarning,
                stacklevel=2,
            )
        return [*self.table, *sorted(found.keys() - self.table.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; a built-in one is found without loading any plugin."""
        if cmd_name in self.table:
            return self.table[cmd_name].load()
        return current_session(ctx).plugin_command(cmd_name)

    def summaries(self, ctx: click.Context) -> list[tuple[str, str]]:
        """Name and line of help of every command; no built-in command is imported."""
        found = current_session(ctx).plugin_commands.lines
        lines = [
            (name, self.table[name].help if name in self.table else found[name])
            for name in self.list_commands(ctx)
        ]
        return [(name, line) for name, line in lines if line is not None]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands into `--help`."""
        with formatter.section("Commands"):
            formatter.write_dl(self.summaries(ctx))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands without importing them."""
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=line)
            for name, line in self.summaries(ctx)
            if name.startswith(incomplete)
        ]
        # Past click.Group on purpose: it would import every command for its help.
        return [*items, *super(click.Group, self).shell_complete(ctx, incomplete)]

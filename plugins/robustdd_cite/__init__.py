"""The command `robustdd cite`, which comes in through the hook `robustdd_register_commands`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def robustdd_register_commands(cli: click.Group) -> None:
    """Add `cite`; `robustdd --help` calls this, so nothing heavy is imported before it is run."""
    from robustdd_cite.command import cite

    cli.add_command(cite)

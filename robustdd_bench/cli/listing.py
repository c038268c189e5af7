"""`robustdd list`: what is registered, read from the registry alone; no target is imported."""

from __future__ import annotations

import click

from robustdd_bench.cli.shared.arguments import OneOf
from robustdd_bench.cli.shared.output import json_option, print_json, print_table
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.plugins import Registry

# What the user calls them -> what the registry calls them.
KINDS = {
    "methods": "distillers",
    "attacks": "attacks",
    "tracks": "tracks",
    "datasets": "datasets",
    "networks": "networks",
    "executors": "executors",
}


def listing(registry: Registry, kind: str | None = None) -> dict[str, list[dict[str, str]]]:
    """Name, plugin, summary and target of everything registered, by kind.

    Args:
        registry: what the plugins registered.
        kind: one of `KINDS`; None for all.
    """
    return {
        word: [
            {
                "name": entry.name,
                "plugin": entry.plugin,
                "summary": entry.summary,
                "target": entry.target,
            }
            for entry in registry.entries[KINDS[word]].values()
        ]
        for word in (KINDS if kind is None else (kind,))
    }


@click.command("list")
@click.argument("kind", type=OneOf("kind", tuple(KINDS)), required=False)
@json_option
@pass_session
def list_command(session: Session, kind: str | None, as_json: bool) -> None:
    """List methods, attacks, tracks and the rest.

    KIND is methods, attacks, tracks, datasets, networks or executors; without it, all are listed.
    """
    found = listing(session.registry, kind)
    if as_json:
        print_json(found)
        return
    for number, (word, entries) in enumerate(found.items()):
        if number:
            print()
        print_table(
            ("name", "plugin", "summary"),
            [(entry["name"], entry["plugin"], entry["summary"]) for entry in entries],
            title=word if kind is None else "",
        )

"""`robustdd plugins`: what is installed, whether it works, and what it registers."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import click

from robustdd_bench.cli.shared.output import (
    json_option,
    print_hanging,
    print_json,
    print_table,
    terminal_width,
)
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import RobustDDError
from robustdd_bench.plugins import SINGULAR, PluginWarning, remarks


def describe_plugins(session: Session) -> tuple[list[dict[str, Any]], RobustDDError | None]:
    """Every installed plugin, and the conflict of names that keeps the registry from being read."""
    registers: dict[str, list[str]] = {}
    conflict = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        try:
            for kind, entries in session.registry.entries.items():
                for entry in entries.values():
                    registers.setdefault(entry.plugin, []).append(f"{SINGULAR[kind]} {entry.name}")
        except RobustDDError as error:
            conflict = error
        try:
            infos = session.infos
            said = remarks(session.manager)
        except RobustDDError as error:  # two plugins of one name: there is no manager
            return [], error
    rows = [
        {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "module": info.module,
            "status": info.status,
            "registers": registers.get(info.name, []),
            "problem": info.problem,
            "remark": said.get(info.name, ""),
        }
        for info in sorted(infos.values(), key=lambda info: (info.name != "builtin", info.name))
    ]
    return rows, conflict


def _brief(registers: list[str], most: int = 6) -> str:
    """The names, or how many there are of each kind where they would fill the screen."""
    if len(registers) <= most:
        return ", ".join(registers)
    counts = Counter(name.partition(" ")[0] for name in registers)
    return ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items())


@click.command("plugins")
@json_option
@pass_session
def plugins_command(session: Session, as_json: bool) -> None:
    """List the plugins and what they register.

    A broken plugin is shown with its problem, another with what it says of itself. Two plugins that
    claim one name are an error.
    """
    rows, conflict = describe_plugins(session)
    if as_json:
        print_json({"plugins": rows, "conflict": None if conflict is None else str(conflict)})
    else:
        keys = ("name", "distribution", "version", "module", "status")
        beside = terminal_width() == 0  # a line a plugin in a pipe; below the table elsewhere
        remarks = {row["name"]: row["problem"] or row["remark"] for row in rows}
        print_table(
            (*keys, "registers", *["remark"] * beside),
            [
                [
                    *(row[key] for key in keys),
                    _brief(row["registers"]),
                    *[remarks[row["name"]]] * beside,
                ]
                for row in rows
            ],
            whole=("name", "status"),
            minor=("module", "version", "distribution"),
        )
        for name, remark in remarks.items():
            if remark and not beside:
                print_hanging(f"{name}: ", remark)
    if conflict is not None:
        raise conflict

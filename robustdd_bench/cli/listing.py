"""`robustdd list`: what is registered, read from the registry alone, and the runs in a folder.

No target of a plugin is imported.
"""

from __future__ import annotations

from pathlib import Path

import click

from robustdd_bench.cli.shared.arguments import OneOf, out_option
from robustdd_bench.cli.shared.output import (
    announce,
    complain,
    json_option,
    print_json,
    print_table,
)
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


RUNS = "runs"


@click.command("list")
@click.argument("kind", type=OneOf("kind", (*KINDS, RUNS)), required=False)
@out_option
@json_option
@pass_session
def list_command(session: Session, kind: str | None, out: Path, as_json: bool) -> None:
    """List methods, attacks, tracks and the rest; or the runs in a folder.

    KIND is methods, attacks, tracks, datasets, networks or executors; without it, all of them are
    listed. `robustdd list runs` lists the runs under --out: what became of each, the settings in
    which runs of one method differ, and its accuracy.
    """
    if kind == RUNS:
        _print_runs(out, as_json)
        return
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
            whole=("name", "plugin"),
            minor=("plugin",),
        )


def _print_runs(out: Path, as_json: bool) -> None:
    """Print the runs under a folder, a table a track."""
    announce(out)
    from robustdd_bench.protocol.tracks import eps_label
    from robustdd_bench.runs.inventory import list_runs

    runs, problems = list_runs(out)
    if as_json:
        print_json([run.facts() for run in runs])
    elif not runs:
        print(f"no run under {out}")
    for track in dict.fromkeys(run.plan.track.id for run in runs if not as_json):
        here = [run for run in runs if run.plan.track.id == track]
        headline = here[0].plan.track.threat.headline
        rows = []
        for run in here:
            results = run.record.aggregates if run.record else None
            means = [results.clean.mean, results.headline.mean] if results else []
            split = "" if run.plan.split == "test" else f" ({run.plan.split})"
            rows.append(
                (
                    run.folder.name,
                    run.status,
                    f"{run.plan.method}{split}",
                    run.plan.seed,
                    *([f"{100 * mean:.1f}" for mean in means] or ["", ""]),
                    run.settings,
                )
            )
        columns = ("run id", "status", "method", "seed", "clean", eps_label(headline), "differs in")
        print_table(
            columns,
            rows,
            title=track,
            right=("seed", "clean", eps_label(headline)),
            whole=columns[:3],
        )
    for problem in problems:
        complain("warning", problem)

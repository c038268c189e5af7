"""`robustdd cite`: what to cite for a method, an attack or a dataset, and for the benchmark."""

from __future__ import annotations

import sys
from typing import Any

import click

from robustdd_bench.cli.shared.arguments import RegisteredName
from robustdd_bench.cli.shared.output import complain, format_option, print_json
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import PluginError, UsageError, unknown_name
from robustdd_bench.plugins import SINGULAR, Entry, Registry

# As in robustdd_bench.citations, which imports too much for a command's arguments.
KINDS = ("distillers", "attacks", "datasets")


def entries_of(registry: Registry, name: str) -> list[Entry]:
    """The method, the attack and the dataset of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    found = [registry.entries[kind][name] for kind in KINDS if name in registry.entries[kind]]
    if not found:
        known = [known for kind in KINDS for known in registry.names(kind)]
        raise unknown_name("method, attack or dataset", name, known)
    return found


@click.command(
    "cite",
    short_help="Print what to cite for methods, attacks and datasets; by default the benchmark.",
)
@click.argument("names", type=RegisteredName(*KINDS), nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="All that is installed, and the benchmark.")
@format_option("bibtex", "text", "csl", "json")
@pass_session
def cite(session: Session, names: tuple[str, ...], everything: bool, form: str) -> None:
    """Print what to cite for methods, attacks and datasets; without a NAME, for the benchmark.

    What is printed is what a plugin says itself (its CITATION). A NAME without a paper is named on
    stderr; the exit code is 1 if none of them has one. text is a line a paper; csl is CSL-JSON for
    Zotero and pandoc.
    """
    from robustdd_bench.citations import Citation, benchmark, citations, merged

    if names and everything:
        raise UsageError("give names or --all, not both")
    registry = session.registry
    if everything:
        entries = [entry for kind in KINDS for entry in registry.entries[kind].values()]
    else:
        chosen = [entry for name in names for entry in entries_of(registry, name)]
        entries = list(dict.fromkeys(chosen))
    listed: list[Citation] = [] if names else [benchmark()]
    report: list[dict[str, Any]] = []
    for entry in entries:
        try:
            found = citations(entry)
        except PluginError as error:
            if not everything:
                raise
            complain("warning", error)
            continue
        if not found and not everything:
            info = registry.plugins.get(entry.plugin)
            source = f"plugin {entry.plugin!r}, {info.distribution}" if info else entry.plugin
            complain(
                "note", f"{SINGULAR[entry.kind]} {entry.name!r} names no paper to cite ({source})"
            )
        listed += found
        report.append(
            {
                "kind": SINGULAR[entry.kind],
                "name": entry.name,
                "plugin": entry.plugin,
                "citations": [citation.content() for citation in found],
            }
        )
    listed = merged(listed)
    if form == "json":
        own = [] if names else [benchmark().content()]
        print_json({"benchmark": own, "entries": report})
    elif form == "csl":
        print_json([citation.csl() for citation in listed])
    elif form == "text":
        sys.stdout.write("".join(f"{citation.text()}\n" for citation in listed))
    else:
        sys.stdout.write("\n".join(citation.bibtex() for citation in listed))
    if not listed:
        click.get_current_context().exit(1)

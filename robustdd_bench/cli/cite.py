"""`robustdd cite`: what to cite for a method, an attack, or the benchmark itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from robustdd_bench.cli.arguments import OneOf
from robustdd_bench.cli.output import print_json
from robustdd_bench.cli.session import Session, pass_session
from robustdd_bench.errors import PluginError, UsageError, unknown_name
from robustdd_bench.plugins import Entry, Registry
from robustdd_bench.terminal import one_line

if TYPE_CHECKING:
    from robustdd_bench.citations import Citation

KINDS = ("distillers", "attacks")


def citations_of(entry: Entry, distribution: str) -> tuple[Citation, ...]:
    """The entries that a method or attack says of itself.

    Raises:
        UsageError: it says none.
        PluginError: it does not load, or what it says is not BibTeX.
    """
    from robustdd_bench.citations import parse_bibtex

    text = getattr(entry.load(), "CITATION", "")
    if not isinstance(text, str) or not text.strip():
        raise UsageError(
            f"{entry.name!r} names no paper; ask whom the package {distribution} is from"
        )
    try:
        return parse_bibtex(text)
    except ValueError as error:
        raise PluginError(
            f"plugin {entry.plugin!r}: the citation of {entry.name!r} is not BibTeX: {error}"
        ) from error


def find(registry: Registry, name: str) -> Entry:
    """The method or attack of that name.

    Raises:
        UsageError: there is none.
    """
    for kind in KINDS:
        if name in registry.entries[kind]:
            return registry.get(kind, name)
    known = [known for kind in KINDS for known in registry.entries[kind]]
    raise unknown_name("method or attack", name, known)


@click.command("cite")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--format",
    "form",
    type=OneOf("format", ("bibtex", "text", "json")),
    default="bibtex",
    show_default=True,
    help="bibtex, text (a line each) or json (CSL-JSON).",
)
@pass_session
def cite(session: Session, names: Sequence[str], form: str) -> None:
    """Print what to cite for methods and attacks.

    NAME is a method or an attack; without one, the citation of the benchmark itself is printed.
    """
    from robustdd_bench.citations import OWN, parse_bibtex, unique

    registry = session.registry
    entries = [find(registry, name) for name in names]
    found = [
        citation
        for entry in entries
        for citation in citations_of(entry, registry.plugins[entry.plugin].distribution)
    ]
    citations = unique(found if names else parse_bibtex(OWN))
    if form == "json":
        print_json([citation.csl() for citation in citations])
    elif form == "text":
        for citation in citations:
            print(one_line(citation.text()))
    else:
        print("\n".join(citation.bibtex() for citation in citations), end="")

"""The papers of the methods that come with the benchmark, for the board.

They are read from the files beside the methods' code, not from what is installed or switched on:
the same published runs give the same board everywhere.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from robustdd_bench.board.schema import PaperContent
from robustdd_bench.citations import Citation, parse_bibtex

OURS = "robustdd-bench"


@functools.cache
def paper_of(method: str, plugin: str, distribution: str) -> PaperContent | None:
    """The paper of a method; None where it has none, or comes from elsewhere.

    Args:
        method: its name.
        plugin: the plugin that registers it.
        distribution: what the plugin was installed with.
    """
    if distribution != OURS:
        return None
    try:
        found = importlib.util.find_spec(f"robustdd_{plugin}")
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    for name in (f"citation_{method.replace('-', '_')}.bib", "citation.bib"):
        if (folder / name).is_file():
            return content(parse_bibtex((folder / name).read_text(encoding="utf-8"))[0])
    return None


def content(citation: Citation) -> PaperContent:
    """A reference as the board holds it."""
    return PaperContent(
        reference=citation.text(),
        short=citation.short(),
        link=citation.link(),
        bibtex=citation.bibtex(),
    )

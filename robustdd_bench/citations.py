"""What to cite: BibTeX that methods, attacks and datasets carry themselves, and other forms of it.

A registered class or function says it in its attribute CITATION: BibTeX of one or more entries as
a text, or the path of a file that holds it. What is read is plain BibTeX: entries whose values are
in braces, in quotes or numbers; no @string, @preamble or "#". What is printed is written anew from
the fields, so that nothing but fields comes out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from robustdd_bench import __version__
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.plugins import SINGULAR, Entry
from robustdd_bench.strict import read_bounded
from robustdd_bench.text.latex import unescape
from robustdd_bench.text.tables import LONGEST
from robustdd_bench.text.terminal import one_line

KINDS = ("distillers", "attacks", "datasets")
"""Kinds of registered things that may be cited."""
MAX_BYTES = 64 * 2**10
REQUIRED = ("author", "title", "year")
_CSL_TYPES = {
    "article": "article-journal",
    "inproceedings": "paper-conference",
    "book": "book",
    "phdthesis": "thesis",
    "techreport": "report",
}
_VENUES = ("journal", "booktitle", "institution", "school", "publisher", "howpublished")

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Citation:
    """One entry of BibTeX."""

    kind: str
    """Such as "inproceedings"."""
    key: str
    fields: Mapping[str, str]
    """In LaTeX, on one line each; `REQUIRED` are among them."""

    def bibtex(self) -> str:
        """The entry, a field a line."""
        width = max(map(len, self.fields))
        lines = [f"  {name:<{width}} = {{{value}}}," for name, value in self.fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"]) + "\n"

    def shown(self, name: str) -> str:
        """A field as plain text; "" if it is missing."""
        return unescape(self.fields.get(name, ""))

    def authors(self) -> list[tuple[str, str]]:
        """Family and given names; an organisation has no given name."""
        return [_person(author) for author in _split_authors(self.fields["author"])]

    def text(self) -> str:
        """The entry as a reference, in a line."""
        people = [" ".join(filter(None, (given, family))) for family, given in self.authors()]
        names = people[0] if len(people) == 1 else f"{', '.join(people[:-1])} and {people[-1]}"
        venue = next((self.shown(name) for name in _VENUES if name in self.fields), "")
        volume, number, pages = (self.shown(name) for name in ("volume", "number", "pages"))
        parts = [venue, f"{volume}({number})" if volume and number else volume, pages]
        if "eprint" in self.fields:
            parts.append(f"arXiv:{self.shown('eprint')}")
        if "version" in self.fields:
            parts.append(f"version {self.shown('version')}")
        said = ", ".join(filter(None, [*parts, self.shown("year")]))
        link = f" https://doi.org/{self.shown('doi')}" if "doi" in self.fields else ""
        return f"{names}. {self.shown('title')}. {said}.{link}"

    def short(self) -> str:
        """Family name of the first author and the year, e.g. "Lai et al. 2025"."""
        (first, _), *others = self.authors()
        more = "" if not others else f" and {others[0][0]}" if len(others) == 1 else " et al."
        return f"{first}{more} {self.shown('year')}"

    def link(self) -> str:
        """Where the paper is: DOI, arXiv or another address; "" where none is told."""
        for name, before in (("doi", "https://doi.org/"), ("eprint", "https://arxiv.org/abs/")):
            if name in self.fields:
                return before + self.shown(name)
        return self.shown("url")

    def csl(self) -> dict[str, Any]:
        """The entry as CSL-JSON, which Zotero and pandoc read."""
        venue = next((name for name in _VENUES if name in self.fields), None)
        archive = venue is None and "eprint" in self.fields
        found = {
            "id": self.key,
            "type": "article" if archive else _CSL_TYPES.get(self.kind, "document"),
            "title": self.shown("title"),
            "author": [
                {"family": family, "given": given} if given else {"literal": family}
                for family, given in self.authors()
            ],
            "issued": {"date-parts": [[int(self.fields["year"])]]},
            "publisher" if venue in ("institution", "school", "publisher") else "container-title": (
                self.shown(venue) if venue else ""
            ),
            "volume": self.shown("volume"),
            "issue": self.shown("number"),
            "page": self.shown("pages"),
            "version": self.shown("version"),
            "DOI": self.shown("doi"),
            "URL": f"https://arxiv.org/abs/{self.shown('eprint')}"
            if "eprint" in self.fields
            else self.shown("url"),
        }
        return {name: value for name, value in found.items() if value}

    def content(self) -> dict[str, Any]:
        """The entry for JSON: its fields as plain text, and the whole as a reference."""
        fields = {name: self.shown(name) for name in self.fields}
        return {"type": self.kind, "key": self.key, "fields": fields, "text": self.text()}


def _split_authors(text: str) -> list[str]:
    """Authors between the words "and" that are in no braces."""
    found, depth = [""], 0
    for part in re.split(r"([{}]|\s+and\s+)", text):
        depth += (part == "{") - (part == "}")
        if depth == 0 and part.strip() == "and":
            found.append("")
        else:
            found[-1] += part
    return [author.strip() for author in found if author.strip()]


def _person(author: str) -> tuple[str, str]:
    """Family and given name of "Family, Given", "Given Family" or "{An Organisation}"."""
    if re.fullmatch(r"\{[^{}]*\}", author):
        return unescape(author), ""
    family, comma, given = author.partition(",")
    if not comma:
        given, _, family = author.rpartition(" ")
    return unescape(family), unescape(given)


_HEAD = re.compile(r"@([A-Za-z]+)\s*\{\s*([^\s,{}\"#%'\\~]+)\s*,")
_FIELD = re.compile(r"([A-Za-z][A-Za-z-]*)\s*=\s*")
_BETWEEN = re.compile(r"(?:\s+|%[^\n]*(?:\n|$))*")
_SPACE = re.compile(r"\s*")


def parse_bibtex(text: str) -> tuple[Citation, ...]:
    """The entries of some BibTeX.

    Raises:
        ValueError: it is not BibTeX of the plain kind, holds no entry or lacks a required field.
    """
    found: dict[str, Citation] = {}
    place = _after(_BETWEEN, text, 0)
    while place < len(text):
        head = _HEAD.match(text, place)
        if head is None or head[1].lower() in ("string", "preamble", "comment"):
            raise ValueError(f"no entry at {_excerpt(text, place)}")
        citation, place = _entry(text, head)
        if citation.key in found:
            raise ValueError(f"the key {citation.key!r} stands twice")
        found[citation.key] = citation
        place = _after(_BETWEEN, text, place)
    if not found:
        raise ValueError("it holds no entry")
    return tuple(found.values())


def _entry(text: str, head: re.Match[str]) -> tuple[Citation, int]:
    """The entry that begins with `head`, and the place behind it."""
    key, place = head[2], _after(_SPACE, text, head.end())
    fields: dict[str, str] = {}
    while text[place : place + 1] != "}":
        name = _FIELD.match(text, place)
        if name is None:
            raise ValueError(f"entry {key!r}: no field at {_excerpt(text, place)}")
        if name[1].lower() in fields:
            raise ValueError(f"entry {key!r}: the field {name[1].lower()!r} stands twice")
        end = _value_end(text, name.end())
        if end is None:
            raise ValueError(f"entry {key!r}: no value at {_excerpt(text, name.end())}")
        value = text[name.end() : end]
        fields[name[1].lower()] = one_line(value[1:-1] if value[0] in '{"' else value, LONGEST)
        place = _after(_SPACE, text, end)
        if text[place : place + 1] == ",":
            place = _after(_SPACE, text, place + 1)
        elif text[place : place + 1] != "}":
            raise ValueError(f"entry {key!r}: no comma at {_excerpt(text, place)}")
    missing = [name for name in REQUIRED if not fields.get(name)]
    if missing:
        raise ValueError(f"entry {key!r} lacks {', '.join(missing)}")
    if not re.fullmatch(r"[0-9]{4}", fields["year"]):
        raise ValueError(f"entry {key!r}: the year is {fields['year'][:40]!r}")
    if not _split_authors(fields["author"]):
        raise ValueError(f"entry {key!r} names no author")
    return Citation(head[1].lower(), key, fields), place + 1


def _value_end(text: str, start: int) -> int | None:
    """The place behind the value at `start`: braces in balance, quotes, or a number."""
    opening = text[start : start + 1]
    if opening not in ("{", '"'):
        number = re.compile(r"[0-9]+").match(text, start)
        return number.end() if number else None
    closing = "}" if opening == "{" else '"'
    depth = 0
    for place in range(start, len(text)):
        character = text[place]
        depth += (character == "{") - (character == "}")  # escaped ones count, as in BibTeX
        if depth < 0:
            return None
        if depth == 0 and place > start and character == closing:
            return place + 1
    return None


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


def _excerpt(text: str, place: int) -> str:
    return repr(one_line(text[place : place + 200], 40))


def citations(entry: Entry) -> tuple[Citation, ...]:
    """What a registered thing says is to be cited for it; empty if it says nothing.

    Raises:
        PluginError: its module does not import, or its CITATION is not BibTeX.
    """
    said = getattr(entry.load(), "CITATION", None)
    if said is None:
        return ()
    try:
        if isinstance(said, Path):
            said = read_bounded(said, "BibTeX", MAX_BYTES).decode("utf-8")
        if not isinstance(said, str):
            raise ValueError(f"it is a {type(said).__name__}, neither a text nor a Path")
        return parse_bibtex(said)
    except (UsageError, ValueError) as error:
        owner = f"plugin {entry.plugin!r}: CITATION of {SINGULAR[entry.kind]} {entry.name!r}"
        raise PluginError(f"{owner} is not to be read: {one_line(error)}") from error


def cites(bibtex: str) -> Callable[[Function], Function]:
    """A decorator that gives a function, such as the loader of a dataset, its CITATION."""

    def mark(function: Function) -> Function:
        function.CITATION = bibtex  # type: ignore[attr-defined]
        return function

    return mark


def benchmark() -> Citation:
    """The benchmark itself; the facts are those of CITATION.cff."""
    return Citation(
        "misc",
        "robustdd-bench",
        {
            "author": "{The robustdd-bench authors}",
            "title": "robustdd-bench: a benchmark for robust dataset distillation",
            "year": "2026",
            "version": __version__,
        },
    )


def merged(found: Iterable[Citation]) -> list[Citation]:
    """Each entry once; another one with a key that is taken gets a key of its own."""
    kept: dict[str, Citation] = {}
    for citation in found:
        key, number = citation.key, 2
        while key in kept and (kept[key].kind, kept[key].fields) != (
            citation.kind,
            citation.fields,
        ):
            key, number = f"{citation.key}-{number}", number + 1
        kept[key] = Citation(citation.kind, key, citation.fields)
    return list(kept.values())

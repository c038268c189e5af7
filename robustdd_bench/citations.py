"""Citations of methods, attacks and this benchmark: BibTeX, which each plugin says of itself.

What is read is the plain part of BibTeX: `@type{key, name = {value}, ...}` with values in braces.
A text that is not of that form is an error that names the owner, since papers copy it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from robustdd_bench import __version__

OWN = f"""@software{{robustdd-bench,
  title = {{robustdd-bench: a benchmark for robust dataset distillation}},
  author = {{{{The robustdd-bench authors}}}},
  year = {{2026}},
  version = {{{__version__}}},
  license = {{MIT}}
}}"""

_HEAD = re.compile(r"\s*@([A-Za-z]+)\s*\{\s*([A-Za-z0-9:_./+-]+)\s*")
_FIELD = re.compile(r"\s*,\s*([A-Za-z-]+)\s*=\s*\{")
_CSL_TYPES = {
    "inproceedings": "paper-conference",
    "article": "article-journal",
    "misc": "article",
    "software": "software",
}


@dataclass(frozen=True, slots=True)
class Citation:
    """An entry of BibTeX."""

    kind: str
    """"inproceedings", "article", ..."""
    key: str
    fields: dict[str, str]
    """Values without their outer braces, in the order of the entry."""

    def bibtex(self) -> str:
        """The entry, a field a line."""
        lines = [f"  {name} = {{{value}}}" for name, value in self.fields.items()]
        return f"@{self.kind}{{{self.key},\n" + ",\n".join(lines) + "\n}\n"

    def authors(self) -> list[tuple[str, str]]:
        """Family name and given names of each author; a group has no given names."""
        found = []
        for author in self.fields["author"].split(" and "):
            family, _, given = author.partition(", ")
            found.append((_bare(family), _bare(given)))
        return found

    def text(self) -> str:
        """A line, as a list of references has it."""
        names = ", ".join(f"{given} {family}".strip() for family, given in self.authors())
        where = [
            _bare(self.fields[key])
            for key in ("booktitle", "journal", "version")
            if key in self.fields
        ]
        if "eprint" in self.fields:
            where.append(f"arXiv {self.fields['eprint']}")
        place = f" {', '.join(where)}," if where else ""
        return f"{names}. {_bare(self.fields['title'])}.{place} {self.fields['year']}."

    def csl(self) -> dict[str, Any]:
        """The entry as CSL-JSON."""
        fields = self.fields
        found: dict[str, Any] = {
            "id": self.key,
            "type": _CSL_TYPES.get(self.kind, "document"),
            "title": _bare(fields["title"]),
            "author": [
                {"family": family, "given": given} if given else {"literal": family}
                for family, given in self.authors()
            ],
            "issued": {"date-parts": [[int(fields["year"])]]},
        }
        for key, name in (("booktitle", "container-title"), ("journal", "container-title")):
            if key in fields:
                found[name] = _bare(fields[key])
        if "eprint" in fields:
            found["URL"] = f"https://arxiv.org/abs/{fields['eprint']}"
        return found


def _bare(text: str) -> str:
    return text.replace("{", "").replace("}", "")


def parse_bibtex(text: str) -> tuple[Citation, ...]:
    """The entries of a BibTeX text.

    Raises:
        ValueError: it is not of the form that the module names; the text says where.
    """
    found: list[Citation] = []
    at = 0
    while text[at:].strip():
        head = _HEAD.match(text, at)
        if head is None:
            raise ValueError(f"an entry begins with @type{{key, not with {text[at : at + 30]!r}")
        at = head.end()
        fields: dict[str, str] = {}
        while (field := _FIELD.match(text, at)) is not None:
            end = _closing(text, field.end())
            fields[field[1].lower()] = " ".join(text[field.end() : end].split())
            at = end + 1
        rest = re.compile(r"\s*,?\s*\}").match(text, at)
        if rest is None:
            raise ValueError(f"{head[2]}: a field is not of the form name = {{value}}")
        at = rest.end()
        missing = {"title", "author", "year"} - fields.keys()
        if missing or not re.fullmatch(r"[0-9]{4}", fields["year"]):
            what = ", ".join(sorted(missing)) or "a year of four digits"
            raise ValueError(f"{head[2]}: {what} is missing")
        found.append(Citation(head[1].lower(), head[2], fields))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """Where the brace that was opened before `start` is closed."""
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at
    raise ValueError("a brace is not closed")


def unique(citations: Iterable[Citation]) -> list[Citation]:
    """Each entry once, in order."""
    return list({one.key: one for one in citations}.values())

"""Tables as data, and as CSV and Markdown (as LaTeX: `robustdd_bench.text.latex`).

A cell holds what people read beside the numbers it was made from: no format is made by reading
another one's text. Texts may be a stranger's; each format makes them harmless in its own way.

CSV is that of RFC 4180 in UTF-8, with two choices of our own: lines end in a line feed alone, as
those of all other output do, and a text that a spreadsheet would take for a formula (it begins with
one of "= + - @") gets an apostrophe before it. Numbers have full precision, accuracies are in
[0,1], what is unknown is empty, and truths are "true" and "false".
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustdd_bench.errors import UsageError
from robustdd_bench.text.terminal import one_line

Raw = str | bool | int | float | None

FORMULA = "=+-@＝＋－＠"
"""A spreadsheet may run a cell that begins with one of these."""
LONGEST = 100_000
"""Characters of a cell; run ids of many seeds are a long text."""


@dataclass(frozen=True, slots=True)
class TableCell:
    """One value of a table."""

    text: str
    """As people read it."""
    raw: Mapping[str, Raw]
    """For machines, by the suffix of the column's key; "" is the key alone."""
    best: bool = False
    """No other value of its column is better."""
    tied: bool = False
    """It shares its place with another one."""


@dataclass(frozen=True, slots=True)
class Column:
    """What the cells of a column have in common."""

    key: str
    """Its name for machines."""
    heading: str | None
    """Its name for people; None for a column that only machines see."""
    number: bool = True
    """Aligned to the right."""
    headline: bool = False
    """Marked: what the table ranks by."""
    minor: bool = False
    """Left out of a paper, where columns are narrow; the caption says what it holds."""
    group: str = ""
    """A heading above those of neighbours in the same group, where there is room for it."""
    short: str = ""
    """The heading below that of the group, where it can be shorter; `heading` by default."""

    @property
    def title(self) -> str:
        """The heading with its mark."""
        return f"{self.heading or ''}{' *' if self.headline else ''}"

    @property
    def grouped_title(self) -> str:
        """The heading with its mark, below that of its group."""
        return f"{self.short or self.heading or ''}{' *' if self.headline else ''}"


@dataclass(frozen=True, slots=True)
class TableRow:
    """Cells in the order of the columns."""

    cells: tuple[TableCell, ...]
    apart: bool = False
    """It stands below the others and is not compared with them."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows, with what is said around them."""

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    title: str = ""
    """A line above the table."""
    caption: str = ""
    """All that a reader of the table alone has to know; the title by default."""
    label: str = "table"
    """A name to refer to it by."""
    notes: tuple[str, ...] = ()
    """Sentences that are said once below all tables that share them, where there is no caption."""

    def headings(self) -> list[str]:
        """Headings of the columns that people see."""
        return [column.title for column in self.shown]

    def texts(self) -> list[list[str]]:
        """What people see, row by row."""
        return [[cell.text for cell in row] for row in self.seen()]

    @property
    def shown(self) -> list[Column]:
        """The columns that people see."""
        return [column for column in self.columns if column.heading is not None]

    def seen(self) -> list[list[TableCell]]:
        """The cells that people see, row by row."""
        return [
            [
                cell
                for column, cell in zip(self.columns, row.cells, strict=True)
                if column.heading is not None
            ]
            for row in self.rows
        ]

    def facts(self) -> list[dict[str, Raw]]:
        """The rows as machines read them: values by name."""
        return [
            {
                _name(column, suffix): value
                for column, cell in zip(self.columns, row.cells, strict=True)
                for suffix, value in cell.raw.items()
            }
            for row in self.rows
        ]


def _name(column: Column, suffix: str) -> str:
    return f"{column.key}_{suffix}" if suffix else column.key


def plain(value: Any) -> TableCell:
    """A raw value shown as it is; None as a dash."""
    return TableCell("-" if value is None else str(value), {"": value})


def listed(values: Sequence[object], text: str | None = None) -> TableCell:
    """Several values, separated by spaces; people see `text`, or how many they are."""
    return TableCell(str(len(values)) if text is None else text, {"": " ".join(map(str, values))})


def percent(value: float | None, *, signed: bool = False) -> TableCell:
    """A share in [0,1] in percent, or a difference of two in points with its sign."""
    if value is None:
        return plain(None)
    return TableCell(f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}", {"": value})


def with_deviation(mean: float, std: float | None) -> str:
    """In percent, e.g. "63.1 ± 1.2"; without a deviation the mean alone."""
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def csv_text(tables: Sequence[Table]) -> str:
    """The rows of all tables as one CSV; a row lacks what its table does not have."""
    names: dict[str, None] = {}
    for table in tables:
        for number, column in enumerate(table.columns):
            suffixes = [suffix for row in table.rows for suffix in row.cells[number].raw]
            names |= dict.fromkeys(_name(column, suffix) for suffix in suffixes or [""])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_field, names))
    for table in tables:
        writer.writerows([_field(row.get(name)) for name in names] for row in table.facts())
    return out.getvalue()


def _field(value: Raw) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = one_line(value, LONGEST)
        return f"'{text}" if text.startswith(tuple(FORMULA)) else text
    return "" if value is None else repr(value)


def shared_notes(tables: Iterable[Table]) -> list[str]:
    """The notes of some tables, each once."""
    return list(dict.fromkeys(note for table in tables for note in table.notes))


def markdown_text(tables: Sequence[Table]) -> str:
    """The tables in Markdown, each under its title, and their notes."""
    parts = [
        (f"{_escaped(table.title)}\n\n" if table.title else "") + markdown_table(table)
        for table in tables
    ]
    return "\n".join([*parts, *(f"{_escaped(note)}\n" for note in shared_notes(tables))])


def markdown_table(table: Table) -> str:
    """A table in Markdown, without its title; texts cannot become markup."""
    rows = [
        [_escaped(cell.text) if isinstance(cell.raw.get(""), str) else cell.text for cell in row]
        for row in table.seen()
    ]
    headings = [_escaped(column.heading or "") for column in table.shown]
    marks = [" *" if column.headline else "" for column in table.shown]
    return markdown([a + b for a, b in zip(headings, marks, strict=True)], rows)


def _escaped(text: str) -> str:
    """Text without markup; the separator of cells is left to `markdown`."""
    return re.sub(r"([\\`*_\[\]<>&~$])", r"\\\1", one_line(text))


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(headings), "|" + " --- |" * len(headings), *map(line, rows)]
    return "\n".join(lines) + "\n"


def marked(text: str, mark: str, made: str, what: str) -> str:
    """A text with the part between `<!-- begin MARK -->` and `<!-- end MARK -->` replaced.

    Args:
        text: what has the marks.
        mark: their word.
        made: what comes between them.
        what: the text's name, for the error.

    Raises:
        UsageError: the marks are missing.
    """
    first, last = f"<!-- begin {mark} -->", f"<!-- end {mark} -->"
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise UsageError(f"{what} lacks the marks {first} and {last}")
    return f"{head}{first}\n\n{made}\n{last}{tail}"

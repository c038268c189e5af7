"""What commands print: tables, JSON and one-line complaints.

Data goes to stdout, the rest to stderr. A table is drawn by rich on a terminal and is aligned plain
text in a pipe. Nothing here writes an escape code into a pipe, and control characters in the texts
of strangers are replaced.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import click

from robustdd_bench.terminal import is_terminal, no_colour, one_line

__all__ = [
    "complain",
    "json_option",
    "jsonable",
    "one_line",
    "plain_table",
    "print_json",
    "print_table",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """Add `--json`, which the command receives as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def complain(prefix: str, text: object) -> None:
    """Print `prefix: text` on stderr as one line; a stderr that is gone is no error."""
    try:
        print(f"{prefix}: {one_line(text)}", file=sys.stderr, flush=True)
    except OSError:
        return


def jsonable(value: Any) -> Any:
    """The value as JSON can hold it: tuples are lists, non-finite numbers null, the rest text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    return str(value)


def print_json(value: Any) -> None:
    """Print a value as indented JSON, in ASCII, so that any locale can carry it."""
    print(json.dumps(jsonable(value), indent=2, allow_nan=False))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    right: Collection[str] = (),
) -> None:
    """Print a table on stdout.

    Args:
        columns: headings.
        rows: one sequence a row, as long as `columns`.
        title: a line above the table.
        right: headings of the columns that are aligned to the right, such as numbers.
    """
    cells = [["" if cell is None else one_line(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _print_rich(columns, cells, title, right)
    else:
        sys.stdout.write(plain_table(columns, cells, title=title, right=right))


def plain_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    right: Collection[str] = (),
) -> str:
    """The table as aligned plain text, two spaces between columns."""
    lines = [title] if title else []
    if rows:
        table = [list(columns), *map(list, rows)]
        widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
        for row in table:
            padded = [
                cell.rjust(width) if column in right else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            ]
            lines.append("  ".join(padded).rstrip())
    else:
        lines.append("(none)")
    return "\n".join(lines) + "\n"


def _print_rich(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, right: Collection[str]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = no_colour()
    console = Console(file=sys.stdout, force_terminal=True, no_color=plain, highlight=False)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title) if title else None,
        title_justify="left",
        title_style="" if plain else "bold",
        header_style="" if plain else "bold",
    )
    for column in columns:
        table.add_column(Text(column), justify="right" if column in right else "left")
    for row in rows or [["(none)", *[""] * (len(columns) - 1)]]:
        table.add_row(*map(Text, row))
    console.print(table)

"""What commands print: tables, JSON and one-line complaints.

Data goes to stdout, the rest to stderr. A table is drawn by rich on a terminal and is aligned plain
text in a pipe. Nothing here writes an escape code into a pipe, and control characters in the texts
of strangers are replaced.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from robustdd_bench.cli.shared.arguments import OneOf
from robustdd_bench.errors import UsageError
from robustdd_bench.text.terminal import is_terminal, no_colour, one_line

if TYPE_CHECKING:
    from robustdd_bench.text.tables import Table

__all__ = [
    "announce",
    "complain",
    "format_option",
    "json_option",
    "jsonable",
    "one_line",
    "plain_table",
    "print_json",
    "print_table",
    "print_tables",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """Add `--json`, which the command receives as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def format_option(*words: str) -> Callable[[Function], Function]:
    """Add `--format` and its short form `--json`; the command receives `form`.

    Args:
        *words: the formats, the default first, "json" among them.

    Returns:
        A decorator. The command it makes raises a UsageError for two formats at once.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_form(*args: Any, chosen: str | None, as_json: bool, **options: Any) -> Any:
            if as_json and chosen not in (None, "json"):
                raise UsageError(f"--json and --format {chosen} are two formats; choose one")
            form = "json" if as_json else chosen or words[0]
            return function(*args, form=form, **options)

        format_ = click.option(
            "--format",
            "chosen",
            type=OneOf("format", words),
            metavar=f"[{'|'.join(words)}]",
            help=f"What to print.  [default: {words[0]}]",
        )
        json_ = click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
        return cast(Function, format_(json_(with_form)))

    return decorate


def complain(prefix: str, text: object) -> None:
    """Print `prefix: text` on stderr as one line; a stderr that is gone is no error."""
    _say(f"{prefix}: {one_line(text)}")


def announce(what: object) -> None:
    """Say on stderr what the command is at, before torch is imported, which takes seconds.

    Where torch is there already, as in a call from Python, the next line comes soon enough.
    """
    if "torch" not in sys.modules:
        _say(f"{click.get_current_context().command_path}: {one_line(what)}; loading torch")


def _say(line: str) -> None:
    if sys.stderr is None:  # closed by the shell; print would take stdout
        return
    try:
        print(line, file=sys.stderr, flush=True)
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
    import json

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
    _print(
        columns, [["" if cell is None else str(cell) for cell in row] for row in rows], title, right
    )


def print_tables(tables: Sequence[Table], form: str) -> None:
    """Print tables on stdout as "table" (for people), "csv", "md" or "latex"."""
    from robustdd_bench.text.tables import csv_text, markdown_text, shared_notes

    if form == "csv":
        sys.stdout.write(csv_text(tables))
    elif form == "md":
        sys.stdout.write(markdown_text(tables))
    elif form == "latex":
        from robustdd_bench.text.latex import latex_text

        sys.stdout.write(latex_text(tables))
    else:
        for table in tables:
            right = [column.title for column in table.shown if column.number]
            bold = {
                (i, j)
                for i, cells in enumerate(table.seen())
                for j, cell in enumerate(cells)
                if cell.best
            }
            _print(table.headings(), table.texts(), table.title, right, bold)
        _print_notes(shared_notes(tables))


def _print_notes(notes: Sequence[str]) -> None:
    """Print sentences below tables, wrapped between words on a terminal."""
    import shutil
    import textwrap

    wide = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0
    for note in map(one_line, notes):
        print(textwrap.fill(note, wide, break_on_hyphens=False) if wide > 1 else note)


def _print(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    right: Collection[str],
    bold: Collection[tuple[int, int]] = (),
) -> None:
    """Print texts that may be a stranger's; `bold` are places (row, column)."""
    columns, title = [one_line(column) for column in columns], one_line(title)
    cells = [[one_line(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _print_rich(columns, cells, title, right, bold)
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
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    right: Collection[str],
    bold: Collection[tuple[int, int]],
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
    for i, row in enumerate(rows or [["(none)", *[""] * (len(columns) - 1)]]):
        styles = ["bold" if (i, j) in bold and not plain else "" for j in range(len(row))]
        table.add_row(*map(Text, row, styles))
    console.print(table)

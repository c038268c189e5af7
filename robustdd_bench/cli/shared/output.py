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
    "print_hanging",
    "print_json",
    "print_table",
    "print_tables",
    "print_text",
    "terminal_width",
]

PROSE = 100
"""Characters of a line of prose at most, on a terminal that is wider."""
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
    whole: Collection[str] = (),
    minor: Sequence[str] = (),
) -> None:
    """Print a table on stdout.

    Args:
        columns: headings.
        rows: one sequence a row, as long as `columns`.
        title: a line above the table.
        right: headings of the columns that are aligned to the right, such as numbers.
        whole: headings of other columns that must not wrap on a terminal, such as commands.
        minor: headings of columns that a narrow terminal leaves out, the first one first.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    _print(columns, cells, title, right, whole=whole, minor=minor)


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
            _print(
                table.headings(),
                table.texts(),
                table.title,
                right,
                bold,
                minor=[column.title for column in table.shown if column.minor],
            )
        _print_notes(shared_notes(tables))


def _print_notes(notes: Sequence[str]) -> None:
    """Print sentences below tables, wrapped between words on a terminal."""
    for note in notes:
        print_hanging("", note)


def _print(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    right: Collection[str],
    bold: Collection[tuple[int, int]] = (),
    *,
    whole: Collection[str] = (),
    minor: Sequence[str] = (),
) -> None:
    """Print texts that may be a stranger's; `bold` are places (row, column)."""
    columns, title = [one_line(column) for column in columns], one_line(title)
    cells = [[one_line(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _print_fitted(columns, cells, title, right, bold, whole, minor)
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


def _print_fitted(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    right: Collection[str],
    bold: Collection[tuple[int, int]],
    whole: Collection[str],
    minor: Sequence[str],
) -> None:
    """Print a table as wide as the terminal at most; see `robustdd_bench.text.fitting`."""
    from robustdd_bench.text.fitting import GAP, fit_table, hanging, padded, told, wrapped

    room = terminal_width()
    lines: list[list[tuple[str, bool]]] = [[(line, True)] for line in wrapped(title, room) if title]
    fit = fit_table(columns, rows, room, right=right, whole=whole, minor=minor)
    if not rows:
        lines.append([("(none)", False)])
    elif fit.widths:

        def row_lines(row: Sequence[str], strong: Collection[int]) -> list[list[tuple[str, bool]]]:
            cells = [
                wrapped(row[i], width) for i, width in zip(fit.columns, fit.widths, strict=True)
            ]
            made = []
            for number in range(max(map(len, cells))):
                line: list[tuple[str, bool]] = []
                for i, width, cell in zip(fit.columns, fit.widths, cells, strict=True):
                    text = cell[number] if number < len(cell) else ""
                    line.append((padded(text, width, right=columns[i] in right), i in strong))
                    line.append((" " * GAP, False))
                made.append(line[:-1])
            return made

        lines += row_lines(columns, range(len(columns)))
        total = sum(fit.widths) + GAP * (len(fit.widths) - 1)
        lines.append([("\u2500" * total, False)])
        for number, row in enumerate(rows):
            lines += row_lines(row, [j for i, j in bold if i == number])
        gone = [columns[i] for i in range(len(columns)) if i not in fit.columns and told(rows, i)]
        if gone:
            text = f"Left out at this width: {', '.join(gone)}; output in a pipe has every column."
            lines += [[(line, False)] for line in wrapped(text, room)]
    else:
        for row in rows:
            lines.append([(row[0], True)])
            for name, cell in zip(columns[1:], row[1:], strict=True):
                if cell:
                    lines += [[(line, False)] for line in hanging(f"  {name}: ", cell, room)]
    _print_lines([*lines, [("", False)]])


def _print_lines(lines: Sequence[Sequence[tuple[str, bool]]]) -> None:
    """Print lines of (text, whether it is bold) on a terminal, and cut nothing."""
    from rich.console import Console
    from rich.text import Text

    plain = no_colour()
    console = Console(file=sys.stdout, force_terminal=True, no_color=plain, highlight=False)
    for line in lines:
        text = Text()
        for part, strong in line:
            text.append(part, style="bold" if strong and not plain else "")
        text.rstrip()
        console.print(text, soft_wrap=True)


def terminal_width() -> int:
    """Characters in a line of the terminal that stdout is; 0 where it is none."""
    import shutil

    return max(shutil.get_terminal_size().columns, 2) if is_terminal(sys.stdout) else 0


def print_text(text: str) -> None:
    """Print paragraphs on stdout, with a line above and below, wrapped anew on a terminal.

    Indented paragraphs stay as they are.
    """
    from robustdd_bench.text.fitting import wrapped

    room = min(terminal_width(), PROSE)
    for paragraph in text.strip("\n").split("\n\n"):
        lines = [
            one_line(line, 10_000) if line[:1] != " " else line for line in paragraph.split("\n")
        ]
        if room and not any(line[:1] in (" ", "-", "*", "|") for line in lines):
            lines = wrapped(" ".join(lines), room)
        print("\n" + "\n".join(lines))
    print()


def print_hanging(head: str, text: object) -> None:
    """Print a line on stdout: a head and a text, wrapped below its beginning on a terminal."""
    room, line = terminal_width(), one_line(text, 2000)
    if not room:
        print(f"{head}{line}".rstrip(), flush=True)
        return
    from robustdd_bench.text.fitting import hanging

    for part in hanging(head, line, room):
        print(part.rstrip(), flush=True)

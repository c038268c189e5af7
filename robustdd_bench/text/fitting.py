"""How a table and a sentence fit a terminal: nothing is cut, words stay whole.

Where a table is too wide, texts wrap between words, columns that matter least are left out (the
caller names them), and at last every row becomes a list of its own, a line a column.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

GAP = 2
"""Spaces between two columns."""
NARROW = 4
"""Spaces before further lines where a head takes too much room."""
EASY = 24
"""Characters of a line of text that reads well; columns are left out before texts are narrower."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a table is to be shown."""

    columns: tuple[int, ...]
    """Places of the columns that are shown, in their order."""
    widths: tuple[int, ...]
    """Of those columns, in characters; () where each row is a list of its own."""


def fit_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    room: int,
    *,
    right: Collection[str] = (),
    whole: Collection[str] = (),
    minor: Sequence[str] = (),
) -> Fit:
    """Find out how a table fits a number of characters.

    Args:
        columns: headings.
        rows: one sequence a row, as long as `columns`.
        room: width of the terminal, in characters.
        right: headings of columns of numbers, which do not wrap.
        whole: headings of other columns that do not wrap, such as names.
        minor: headings of the columns that may be left out, the first one first.
    """
    table = [list(columns), *rows]
    natural = [max(cell_len(row[i]) for row in table) for i in range(len(columns))]
    word = [
        natural[i]
        if name in right or name in whole
        else max(cell_len(part) for row in table for part in row[i].split() or [""])
        for i, name in enumerate(columns)
    ]
    easy = [max(least, min(full, EASY)) for least, full in zip(word, natural, strict=True)]
    shown = list(range(len(columns)))
    if _taken(natural, shown) > room:  # a column of nothing is no loss
        shown = [i for i in shown if i == 0 or told(rows, i)]
    for leaving in (None, *(name for name in minor if name in columns)):
        if leaving is not None and columns.index(leaving) in shown:
            shown.remove(columns.index(leaving))
        if _taken(easy, shown) <= room:
            return Fit(tuple(shown), _spread(shown, easy, natural, room))
    if _taken(word, shown) <= room:
        return Fit(tuple(shown), _spread(shown, word, natural, room))
    return Fit(tuple(range(len(columns))), ())


def told(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether any row has a text in a column."""
    return any(row[column] for row in rows)


def _taken(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + GAP * (len(shown) - 1)


def _spread(
    shown: Sequence[int], least: Sequence[int], natural: Sequence[int], room: int
) -> tuple[int, ...]:
    """Give what room is left to the columns that wrap, the narrowest first."""
    widths = {i: least[i] for i in shown}
    left = room - _taken(least, shown)
    while left > 0:
        waiting = [i for i in shown if widths[i] < natural[i]]
        if not waiting:
            break
        widths[min(waiting, key=lambda i: widths[i])] += 1
        left -= 1
    return tuple(widths[i] for i in shown)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters, broken between words alone."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def hanging(head: str, text: str, width: int) -> list[str]:
    """The text after a head, in lines; those after the first begin below the text's beginning.

    Args:
        head: what stands before the text, with the spaces between.
        text: one line.
        width: of the terminal, in characters; 0: no bound.
    """
    indent = cell_len(head)
    if not width:
        return [head + text]
    if width - indent >= EASY:
        first, *others = wrapped(text, width - indent)
        return [head + first, *(" " * indent + line for line in others)]
    first, *others = wrapped(head + text, width)
    rest = wrapped(" ".join(others), width - NARROW) if others else []
    return [first, *(" " * NARROW + line for line in rest)]


def padded(text: str, width: int, *, right: bool) -> str:
    """The text with the spaces that fill a number of characters."""
    space = " " * max(0, width - cell_len(text))
    return space + text if right else text + space

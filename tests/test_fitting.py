"""Tables and sentences on a terminal: nothing is cut, words stay whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from robustdd_bench.text.fitting import fit_table, hanging, padded, wrapped

COLUMNS = ("rank", "method", "images", "seeds", "clean", "0.10 *")
ROWS = [
    ("1", "mat", "100", "3", "96.4 ± 0.1", "64.2 ± 1.8"),
    ("-", "full (reference)", "1438", "3", "98.7 ± 0.1", "56.5 ± 0.6"),
]
RIGHT = ("rank", "images", "seeds", "clean", "0.10 *")


def fitted(room, **options):
    found = fit_table(COLUMNS, ROWS, room, right=RIGHT, minor=("images", "seeds"), **options)
    return [COLUMNS[i] for i in found.columns], list(found.widths)


def test_a_table_that_fits_is_as_wide_as_its_texts() -> None:
    assert fitted(61) == (list(COLUMNS), [4, 16, 6, 5, 10, 10])


def test_minor_columns_are_left_out_before_numbers_wrap_and_in_their_order() -> None:
    assert fitted(60) == (["rank", "method", "seeds", "clean", "0.10 *"], [4, 16, 5, 10, 10])
    assert fitted(52) == (["rank", "method", "clean", "0.10 *"], [4, 16, 10, 10])


def test_then_texts_wrap_between_words_and_numbers_do_not() -> None:
    assert fitted(44) == (["rank", "method", "clean", "0.10 *"], [4, 14, 10, 10])
    assert fitted(41) == (["rank", "method", "clean", "0.10 *"], [4, 11, 10, 10])


def test_where_that_is_not_enough_each_row_is_a_list_with_every_column() -> None:
    assert fitted(40) == (list(COLUMNS), [])
    assert fitted(43, whole=("method",)) == (list(COLUMNS), [])


def test_a_column_of_nothing_goes_first() -> None:
    columns, rows = ("run id", "settings"), [("0123456789ab", "")]
    assert fit_table(columns, rows, 22).columns == (0, 1)
    assert fit_table(columns, rows, 21).columns == (0,)


def test_a_long_text_gets_the_room_that_is_left() -> None:
    found = fit_table(("key", "meaning"), [("eps", "radius of the adversary " * 9)], 60)
    assert found.widths == (3, 55)


def test_lines_break_between_words_and_a_long_word_stays_whole() -> None:
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("a 0123456789 b", 5) == ["a", "0123456789", "b"]
    assert wrapped("", 5) == [""]


def test_wide_characters_take_two_places() -> None:
    assert wrapped("漢字 漢字", 6) == ["漢字", "漢字"]
    assert padded("漢", 4, right=True) == "  漢"
    assert padded("漢", 4, right=False) == "漢  "


def test_further_lines_begin_below_the_beginning_of_the_text() -> None:
    head = "ok    disk  "
    text = "plenty of space is free at the folder of the runs"
    assert hanging(head, text, 40) == [
        "ok    disk  plenty of space is free at",
        "            the folder of the runs",
    ]
    assert hanging(head, text, 0) == [head + text]
    assert hanging("x" * 30 + " ", "one two three", 40) == ["x" * 30 + " one two", "    three"]


@given(
    st.lists(st.text("ab ", max_size=30), min_size=1, max_size=5),
    st.integers(1, 60),
    st.booleans(),
)
def test_nothing_is_ever_lost(cells, room, whole) -> None:
    cells = [" ".join(cell.split()) for cell in cells]
    columns = [f"c{i}" for i in range(len(cells))]
    found = fit_table(
        columns, [cells], room, right=columns[:1], whole=columns[1:2] if whole else ()
    )
    if not found.widths:
        assert found.columns == tuple(range(len(cells)))
        return
    assert 0 in found.columns
    assert all(cells[i] == "" for i in range(len(cells)) if i not in found.columns)
    for i, width in zip(found.columns, found.widths, strict=True):
        lines = wrapped(cells[i], width)
        assert " ".join(lines) == cells[i]
        assert all(len(line) <= width for line in lines)
    assert sum(found.widths) + 2 * (len(found.widths) - 1) <= room

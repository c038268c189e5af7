"""Divisions: what a set brings beside its images decides which sets it is ranked with."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from made_up import made_up, put, share

from robustdd_bench.board.build import build
from robustdd_bench.board.compare import compare_standings
from robustdd_bench.board.divisions import (
    division_of,
    division_title,
    has_own_preprocessing,
    in_order,
    remark,
)
from robustdd_bench.board.publish import published
from robustdd_bench.board.ranking import divisions
from robustdd_bench.board.schema import BoardContent
from robustdd_bench.board.standings import standings
from robustdd_bench.board.views.page import page
from robustdd_bench.board.views.readme import section
from robustdd_bench.board.views.tables import board_tables
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.text.latex import latex_text
from robustdd_bench.text.tables import csv_text

ZCA = asdict(Preprocessing("zca"))
IMPORTED = {"imported": {"format": "dc", "files": {}, "options": {}}}
KINDS = {
    "hard": {},
    "hard, own preprocessing": {"preprocessing": ZCA},
    "hard, imported": {"provenance": IMPORTED},
    "hard, own preprocessing, imported": {"preprocessing": ZCA, "provenance": IMPORTED},
    "soft": {"labels": "soft"},
    "soft, own preprocessing": {"labels": "soft", "preprocessing": ZCA},
    "soft, imported": {"labels": "soft", "provenance": IMPORTED},
    "soft, own preprocessing, imported": {
        "labels": "soft",
        "preprocessing": ZCA,
        "provenance": IMPORTED,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_labels_preprocessing_and_origin_decide_the_division(name: str) -> None:
    assert division_of(made_up("m", share(50), **KINDS[name])) == name


def test_divisions_stand_in_one_order_with_the_plain_ones_first() -> None:
    assert in_order([*reversed(KINDS), "hard"]) == list(KINDS)


@pytest.mark.parametrize(
    ("name", "title", "remarked"),
    [
        ("hard", "Hard labels", ""),
        ("soft", "Soft labels", "soft labels"),
        ("hard, imported", "Hard labels, imported", "imported"),
        (
            "soft, own preprocessing, imported",
            "Soft labels, own preprocessing, imported",
            "soft labels, own preprocessing, imported",
        ),
    ],
)
def test_divisions_have_titles_and_remarks(name, title, remarked) -> None:
    assert (division_title(name), remark(name)) == (title, remarked)


def test_sets_of_different_divisions_are_never_ranked_together() -> None:
    records = [
        made_up(name.replace(", ", "-").replace(" ", "-"), share(70 - 9 * i), seed=seed, **fields)
        for i, (name, fields) in enumerate(KINDS.items())
        for seed in (0, 1, 2)
    ]
    found = divisions(records)
    assert [division.name for division in found] == list(KINDS)
    assert all([row.rank for row in division.rows] == [1] for division in found)
    assert not any(row.tied for division in found for row in division.rows)


def test_one_configuration_in_two_divisions_is_two_standings() -> None:
    records = [made_up("m", share(50)), made_up("m", share(50), seed=1, preprocessing=ZCA)]
    assert sorted(row.division for row in standings(records)) == [
        "hard",
        "hard, own preprocessing",
    ]


def test_a_preprocessing_that_is_the_tracks_is_not_its_own() -> None:
    record = made_up("m", share(50), preprocessing=asdict(Preprocessing()))
    assert record.track.preprocessing.kind == "none"
    assert division_of(record) == "hard"
    normal = {"kind": "normalise", "mean": [0.3], "std": [0.25]}
    track = record.track.model_copy(
        update={"preprocessing": type(record.track.preprocessing)(**normal)}
    )
    own = asdict(Preprocessing("normalise", (0.3,), (0.25,)))
    same = made_up("m", share(50), preprocessing=own).distilled
    assert not has_own_preprocessing(same, track)
    # Fields of other kinds do not count: epsilon is of ZCA alone.
    assert not has_own_preprocessing(
        made_up("m", share(50), preprocessing=own | {"epsilon": 0.5}).distilled, track
    )
    other = made_up("m", share(50), preprocessing=own | {"std": (0.2,)}).distilled
    assert has_own_preprocessing(other, track)
    assert has_own_preprocessing(same, record.track)


def test_a_set_that_was_given_is_imported_whatever_it_says() -> None:
    record = made_up("m", share(50))
    for update in ({"plugin": "builtin"}, {"name": "given"}):
        given = record.model_copy(update={"method": record.method.model_copy(update=update)})
        assert division_of(given) == "hard, imported"


def test_every_published_row_of_the_digits_stays_in_the_division_of_hard_labels() -> None:
    from pages import committed, committed_runs

    assert {row["division"] for track in committed()["tracks"] for row in track["rows"]} == {"hard"}
    records = [run.record for run in committed_runs() if run.record.track.data.dataset == "digits"]
    assert {division_of(record) for record in records} == {"hard"}


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> tuple[BoardContent, object]:
    """A board with four divisions."""
    root = tmp_path_factory.mktemp("board")
    for name in ("hard", "hard, own preprocessing", "hard, imported", "soft"):
        for seed in (0, 1, 2):
            put(made_up(f"m-{name.split(', ')[-1]}".replace(" ", "-"), share(50), seed=seed,
                        **KINDS[name]), root)  # fmt: skip
    return build(root), root


def test_tables_labels_and_files_tell_divisions_apart(content) -> None:
    board, root = content
    (track,) = board.tracks
    tables = board_tables(track)
    assert list(tables) == ["hard", "hard, own preprocessing", "hard, imported", "soft"]
    assert [table.label for table in tables.values()] == [
        "fast",
        "fast-hard-own-preprocessing",
        "fast-hard-imported",
        "fast-soft",
    ]
    assert "hard labels, own preprocessing" in tables["hard, own preprocessing"].title
    assert latex_text(list(tables.values())).count("\\label{tab:fast-hard-imported}") == 1
    assert '"hard, imported"' in csv_text(list(tables.values()))
    text = section(published(root), root)
    for title in ("Hard labels:", "Hard labels, own preprocessing:", "Hard labels, imported:"):
        assert title in text


def test_the_page_has_a_table_and_a_choice_a_division(content) -> None:
    board, root = content
    text = page(board, root)
    for name in ("hard", "hard, own preprocessing", "hard, imported", "soft"):
        assert f'<div class="division" data-division="{name}">' in text
        assert f'<option value="{name}">{division_title(name)}</option>' in text
    assert "m-imported (imported)" in text  # in the overview
    marks = {row.method: row.marks for row in board.tracks[0].rows}
    assert "own preprocessing" in marks["m-own-preprocessing"]
    assert "imported" in marks["m-imported"]
    assert "soft labels" in marks["m-soft"]


def test_a_comparison_across_divisions_names_them(content) -> None:
    _, root = content
    rows = {row.method: row for row in standings(run.record for run in published(root))}
    found = compare_standings(rows["m-hard"], rows["m-imported"])
    assert found.table().title.startswith("fast@1: m-hard minus m-imported (imported) in points")
    assert "never ranked together" in found.note()
    said = json.loads(json.dumps(found.content()))
    assert (said["a"]["division"], said["b"]["division"]) == ("hard", "hard, imported")

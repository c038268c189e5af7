"""A page a run; papers, days and pictures on the board's page."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from pages import BOARD, Tree, committed, hostile, text_of
from small_runs import example

from robustdd_bench.board.build import build, stale_pages
from robustdd_bench.board.method_papers import content, paper_of
from robustdd_bench.board.naming import Named, distinct_names
from robustdd_bench.board.publish import publish
from robustdd_bench.board.schema import BoardContent
from robustdd_bench.board.validate import validate
from robustdd_bench.board.views.plots import Mark
from robustdd_bench.board.views.run_page import place_of, run_pages
from robustdd_bench.board.views.sets import columns
from robustdd_bench.citations import citations
from robustdd_bench.cli.main import COMMANDS
from robustdd_bench.plugins import collect, get_plugin_manager


def content_of(board):
    return BoardContent.model_validate(board, strict=False)


@pytest.fixture(scope="module")
def pages():
    return run_pages(content_of(committed()))


def test_every_published_run_has_a_page_with_its_figures_command_and_files(pages) -> None:
    board = content_of(committed())
    runs = [
        (track, row, run)
        for track in board.tracks
        for row in track.rows
        for run in (*row.runs, *row.other_runs)
    ]
    assert len(runs) == len(pages) > 50
    for track, row, run in runs:
        tree = Tree(pages[place_of(run)])
        words = " ".join(" ".join(tree.words).split())
        assert f"{row.method} on {track.track}, seed {run.seed}" in words
        for found in (run.clean, *run.robust):
            assert f"{100 * found.mean:.1f}" in tree.words
            assert f"{100 * found.low:.1f}–{100 * found.high:.1f}" in tree.words
        assert run.command in words
        assert run.results_sha256 in words
        links = [one["href"] for one in tree.all("a")]
        files = [link for link in links if link.startswith("../") and "#" not in link]
        assert f"../{run.folder}/record.json" in files
        assert all((BOARD / "runs" / link).resolve().is_file() for link in files)
        assert (BOARD / "runs" / tree.all("img")[0]["src"]).resolve().is_file()
        assert f"@misc{{robustdd-{run.run_id}," in words


def test_a_page_of_a_run_loads_its_picture_alone_and_has_a_preview_for_links(pages) -> None:
    for text in pages.values():
        tree = Tree(text)
        assert not tree.all("script")
        assert not tree.all("link")
        names = {one.get("property") for one in tree.all("meta")}
        assert {"og:title", "og:description", "og:type"} <= names


def test_texts_of_strangers_are_escaped_on_the_page_of_a_run() -> None:
    for text in run_pages(content_of(hostile())).values():
        tree = Tree(text)
        assert not tree.all("script")
        assert not any(name.startswith("on") for _, attributes in tree.tags for name in attributes)
        assert "\u202e" not in text


def test_pages_come_and_go_with_the_runs(tmp_path) -> None:
    board = build(tmp_path)
    assert not (tmp_path / "runs").exists()
    publish(example().folder, tmp_path)
    board = build(tmp_path)
    run = board.tracks[0].rows[0].runs[0]
    assert (tmp_path / place_of(run)).is_file()
    assert not validate(tmp_path).problems
    stray = tmp_path / "runs" / "0123456789ab.html"
    stray.write_text("x")
    assert [f"{one.place}: {one.problem}" for one in validate(tmp_path).problems] == [
        "runs/0123456789ab.html: is of no published run; `robustdd board build` removes it"
    ]
    assert stale_pages(tmp_path, {place_of(run)}) == [stray]
    build(tmp_path)
    assert not stray.exists()
    (tmp_path / place_of(run)).write_text("changed by hand")
    assert len(validate(tmp_path).problems) == 1


def test_papers_are_those_that_the_shipped_methods_name() -> None:
    registry = collect(get_plugin_manager())
    named = 0
    for name, entry in registry.entries["distillers"].items():
        if registry.plugins[entry.plugin].distribution != "robustdd-bench":
            continue
        found = citations(entry)
        paper = paper_of(name, entry.plugin, "robustdd-bench")
        assert paper == (content(found[0]) if found else None), name
        named += paper is not None
    assert named >= 12
    mat = paper_of("mat", "mat", "robustdd-bench")
    assert (mat.short, mat.link) == ("Lai et al. 2025", "https://arxiv.org/abs/2503.12069")
    assert paper_of("mat", "mat", "somebody-elses") is None
    assert paper_of("x", "no_such_plugin", "robustdd-bench") is None


def test_the_overview_has_the_figures_of_the_leaders_and_says_how_many_more() -> None:
    board = committed()
    text = text_of(board)
    for track in board["tracks"]:
        row = re.search(rf'<tr data-track="{track["track"]}">.*?</tr>', text, re.DOTALL)[0]
        level = [one for one in track["rows"] if one["rank"] == 1]
        divisions = dict.fromkeys(one["division"] for one in level)
        first = [
            one
            for name in divisions
            for one in [row for row in level if row["division"] == name][:3]
        ]
        more = len(level) - len(first)
        assert (f"and {more} level with them" in row) == (more > 0)
        lines = re.findall(r'<span class="line">(?:<strong>)?([\w.-]+)', row)
        assert lines == [
            *(one["method"] for one in first),
            *(f"{100 * one['clean']['mean']:.1f}" for one in first),
            *(f"{100 * one['headline']['mean']:.1f}" for one in first),
        ]


def test_the_page_says_which_version_made_it_and_the_day_of_the_newest_run() -> None:
    board = committed()
    days = [
        run["finished"] for track in board["tracks"] for row in track["rows"] for run in row["runs"]
    ]
    text = text_of(board)
    assert f"the newest run ended on {max(days)}." in text
    assert "How to add a row" in text
    assert "../docs/" not in text, "it says so itself"


def test_the_commands_that_add_a_row_are_commands_with_these_options() -> None:
    text = text_of(committed())
    add = text[text.index('id="add"') : text.index("</details>", text.index('id="add"'))]
    lines = [
        line
        for code in re.findall(r"<code>(.*?)</code>", add, re.DOTALL)
        for line in code.splitlines()
    ]
    calls = [shlex.split(line) for line in lines if line.startswith("robustdd ")]
    assert {call[1] for call in calls} == {
        "new-plugin",
        "check-plugin",
        "run",
        "publish",
        "evaluate",
    }
    for _, name, *words in calls:
        options = {opt for param in COMMANDS[name].load().params for opt in param.opts}
        assert {word for word in words if word.startswith("--")} <= options
        assert sum(not word.startswith("--") for word in words) >= 1
    named = set(re.findall(r"<code>(--[a-z]+)</code>", add))
    assert named
    assert named <= {opt for param in COMMANDS["publish"].load().params for opt in param.opts}
    kinds = next(p for p in COMMANDS["new-plugin"].load().params if p.name == "kind").type
    assert kinds.convert("method", None, None) == "method"


@pytest.mark.parametrize(
    ("width", "height", "classes", "parts"),
    [(36, 342, 10, 2), (172, 342, 10, 1), (36, 3402, 100, 10), (36, 240, 7, 1), (36, 374, 11, 1)],
)
def test_a_strip_is_cut_into_columns_of_whole_rows(width, height, classes, parts) -> None:
    assert columns(width, height, classes) == parts
    assert classes % parts == 0


def test_a_strip_shows_every_class_once() -> None:
    text = text_of(committed())
    strips = re.findall(r"\.(set-\d+)\{display:flex", text)
    assert strips
    for name in strips:
        size = re.search(rf"\.{name} i\{{[^}}]*background-size:100% (\d+)%", text)
        places = re.findall(
            rf"\.{name} i:nth-child\((\d)\)\{{background-position:0 ([\d.]+)%", text
        )
        assert int(size[1]) == 100 * len(places)
        assert [float(place) for _, place in places] == [
            100 * i / (len(places) - 1) for i in range(len(places))
        ]
        shown = re.search(rf'class="set {name}"[^>]*>((?:<i></i>)+)', text)
        assert shown[1].count("<i>") == len(places)


def test_rows_of_one_method_are_told_apart_by_what_differs() -> None:
    many = dict.fromkeys("abcd", 1)
    rows = [
        ("hard", "mtt", "default", {"lr": 0.5}, "mtt-aaaaaa"),
        ("hard", "mtt", "full-data", {"lr": 0.1}, "mtt-bbbbbb"),
        ("hard", "mat", "default", many, "mat-cccccc"),
        ("hard", "mat", "default", dict.fromkeys("abcd", 2), "mat-dddddd"),
        ("hard", "dm", "default", {}, "dm-eeeeee"),
        ("soft", "dm", "default", {}, "dm-ffffff"),
        ("soft", "dc", "quick", {"a": 1, "eps": 2 / 255, "c": 3}, "dc-000000"),
        ("soft", "dc", "quick", {"a": 1, "eps": 4 / 255}, "dc-111111"),
        ("soft", "dc", "paper", {"a": 2, "eps": 4 / 255, "c": 3}, "dc-222222"),
        ("soft", "ftd", "default", {"a": 1}, "ftd-333333"),
        ("soft", "ftd", "default", {"a": 2}, "ftd-444444"),
        ("soft", "ftd", "default", {"a": 1}, "ftd-555555"),
    ]
    assert distinct_names([Named(*row) for row in rows]) == [
        "mtt (default)",
        "mtt (full-data)",
        "mat (cccccc)",
        "mat (dddddd)",
        "dm",
        "dm",
        "dc (quick, eps 2/255, c 3)",
        "dc (quick, eps 4/255)",
        "dc (paper)",
        "ftd (a 1, 333333)",
        "ftd (a 2)",
        "ftd (a 1, 555555)",
    ]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mtt", "mtt"),
        ("mtt (full-data)", "mtt (full-data)"),
        ("mtt (full-data, alpha_init 0.02, expert_lr 0.02)", "mtt (full-data, …)"),
        ("mtt (full, a 1, expert_lr 0.02)", "mtt (full, a 1, …)"),
        ("a name of a set of others that is long", "a name of a set of others that is long"),
    ],
)
def test_a_label_beside_a_point_is_short(name, label) -> None:
    row = content_of(committed()).tracks[0].rows[0].model_copy(update={"label": name})
    assert Mark(row, 0, (), ()).label == label


def test_two_presets_of_a_method_are_two_names_on_the_page_and_in_tables() -> None:
    board = json.loads((BOARD / "leaderboard.json").read_text(encoding="utf-8"))
    (track,) = (one for one in content_of(board).tracks if one.track == "cifar10-small-ipc5")
    names = [row.name for row in track.rows]
    assert len(set(names)) == len(names)
    rates = ("alpha_init 0.02, expert_lr 0.02", "alpha_init 0.005, expert_lr 0.05")
    assert {"mtt (default)", *(f"mtt (full-data, {rate})" for rate in rates)} <= set(names)
    text = (BOARD / "index.html").read_text(encoding="utf-8")
    shown = (BOARD.parent / "docs" / "results.md").read_text(encoding="utf-8")
    for name in names:
        assert f">{name}</a>" in text
        assert f"| {name} |" in shown.replace("\\_", "_")

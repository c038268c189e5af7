"""`robustdd table`, `plot`, `compare` and `list runs` on folders of runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import made_up, put, share
from PIL import Image
from publishing import forged
from small_runs import copy_of, example, plan_of, run

from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.rendering import png_size
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.evaluation.statistics.comparison import accuracy_intervals, compare
from robustdd_bench.files import write_json
from robustdd_bench.papers.pictures import class_names
from robustdd_bench.papers.plots import COLOURS, apart, plot_bytes
from robustdd_bench.papers.selection import panels, read_runs
from robustdd_bench.papers.tables import joint_table, panel_tables

RESULTS = Path(__file__).parents[1] / "leaderboard" / "results"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Methods a (three seeds, one of them not ranked) and b (two settings) on two tracks."""
    root = tmp_path_factory.mktemp("runs")
    found = [made_up("a", share(60 + seed), seed=seed) for seed in (0, 1, 7)]
    found += [
        made_up("b", share(30), lr=0.1, eps=2 / 255),
        made_up("b", share(40), lr=0.2, eps=0.1),
    ]
    found += [made_up("end", share(80), reference=True)]
    other = found[0].track.model_copy(update={"name": "other"})
    found += [forged(made_up("a", share(20)), track=other)]
    for record in found:
        put(record, root)
    return root / "results"


@pytest.fixture
def call(capsys):
    """What a call prints on stdout; a refused one: its line on stderr."""

    def calling(*args: object, refused: bool = False) -> str:
        code = main([str(arg) for arg in args])
        printed = capsys.readouterr()
        assert code == (2 if refused else 0), printed.err
        if not refused:
            return printed.out
        assert printed.out == ""
        (line,) = [one for one in printed.err.splitlines() if one.startswith("error: ")]
        return line

    return calling


def only(found):
    (one,) = found
    return one


# --- which runs are meant --------------------------------------------------------------------


def test_a_path_is_a_run_its_record_or_a_folder_with_runs_below(runs) -> None:
    folder = only((runs / "other" / "a").iterdir())
    for path in (folder, folder / "record.json", runs / "other"):
        (record,) = read_runs([path], print)
        assert record.run_id == folder.name
    assert len(read_runs([runs, folder, runs / "fast"], print)) == 7, "each run once"


def test_every_seed_counts_and_settings_that_differ_are_named(runs) -> None:
    fast, other = panels(read_runs([runs], print))
    assert [entry.name for entry in fast.entries] == [
        "a",
        "b (eps 0.10, lr 0.2)",
        "b (eps 2/255, lr 0.1)",
        "end (reference)",
    ]
    assert fast.entries[0].seeds == [0, 1, 7]
    assert fast.spreads(fast.entries[0])[-1].mean == pytest.approx((60 + 61 + 67) / 3 / 90)
    assert [entry.name for entry in other.entries] == ["a"]


def test_runs_that_nothing_tells_apart_have_their_ids(runs) -> None:
    first = made_up("a", share(60))
    second = made_up("a", share(50))
    second = second.model_copy(
        update={"method": second.method.model_copy(update={"distribution": "another"})}
    )
    names = [entry.name for entry in only(panels([first, second])).entries]
    assert names == [f"a [{first.run_id}]", f"a [{second.run_id}]"]


def test_validation_and_test_runs_share_no_panel(runs) -> None:
    record = made_up("a", share(60))
    held = record.model_copy(update={"split": "validation"})
    assert [panel.title for panel in panels([record, held])] == [
        "fast@1",
        "fast@1, validation split",
    ]


def test_methods_are_shown_in_the_order_that_is_asked_for(runs) -> None:
    records = read_runs([runs / "fast"], print)
    shown = only(panels(records, methods=["end", "a"]))
    assert [entry.name for entry in shown.entries] == ["end (reference)", "a"]


def test_a_failed_run_is_left_out_and_told(tmp_path) -> None:
    copy_of(example("random"), tmp_path)
    with pytest.raises(PluginError, match="two lines of reasons"):
        run(plan_of("raising"), tmp_path)
    told: list[str] = []
    (record,) = read_runs([tmp_path], told.append)
    assert record.method.name == "random"
    assert told == [f"{tmp_path}: 1 failed run left out"]
    with pytest.raises(UsageError, match=r"no run below .*raising has results"):
        read_runs([tmp_path / "fast" / "raising"], told.append)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("table", "nowhere"), "no run there: nowhere is not a folder"),
        (("table", "{runs}", "--methods", "aa"), "unknown method of these runs 'aa'"),
        (("table", "{runs}", "--methods", "a,"), "--methods takes words with commas"),
        (("table", "{runs}", "--eps", ".3"), "no track of these runs has eps 0.30; they have 0.05"),
        (("table", "{runs}", "--eps", "x"), "--eps takes a number or a fraction like 8/255"),
        (("table", "{runs}", "--eps", "nan"), "--eps takes a number or a fraction like 8/255"),
        (("table", "{runs}", "--eps=-.1"), "--eps takes a number or a fraction like 8/255"),
        (("table", "{runs}", "--eps", "1/0"), "--eps takes a number or a fraction like 8/255"),
        (("plot", "{runs}", "--out", "a.png", "--width", "nan"), "--width takes 1 to 40 inches"),
        (("plot", "{runs}", "--out", "a.png", "--width", "99"), "--width takes 1 to 40 inches"),
        (("plot", "{runs}", "--out", "fig.gif"), "fig.gif: a plot's name ends in .pdf, .svg or"),
        (("plot", "{runs}", "--out", "x/"), "x: a plot's name ends in .pdf, .svg or .png"),
        (("compare", "{runs}/fast/b", "{runs}/fast/a"), "has 2 methods or settings on fast@1: b ("),
        (("compare", "{runs}/fast/a", "{runs}/fast/a/record.json"), "no file"),
        (("list", "runs", "--out", "nowhere"), "no runs there: nowhere is not a folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line(runs, call, words, message) -> None:
    assert message in call(*(word.format(runs=runs) for word in words), refused=True)


# --- tables ----------------------------------------------------------------------------------


def test_a_table_of_published_runs_says_what_the_board_says(call) -> None:
    rows = list(
        csv.DictReader(io.StringIO(call("table", RESULTS / "digits-ipc1", "--format", "csv")))
    )
    board = json.loads((RESULTS.parent / "leaderboard.json").read_text())
    (track,) = (t for t in board["tracks"] if t["track"] == "digits-ipc1")
    assert {row["method"] for row in rows} == {row["method"] for row in track["rows"]}
    for row in track["rows"]:
        (found,) = (r for r in rows if r["method"] == row["method"])
        for value, key in zip(
            (row["clean"], *row["robust"]),
            ("clean", "eps_0.05", "eps_0.10", "eps_0.15", "eps_0.20"),
            strict=True,
        ):
            assert float(found[f"{key}_mean"]) == value["mean"]
            assert float(found[f"{key}_std_seeds"]) == value["std_seeds"]


def test_presets_and_settings_tell_rows_of_a_method_apart_as_on_the_board(call) -> None:
    folder = RESULTS / "cifar10-small-ipc5"
    lines = call("table", folder, "--format", "md").replace("\\_", "_").splitlines()
    board = json.loads((RESULTS.parent / "leaderboard.json").read_text(encoding="utf-8"))
    (track,) = (one for one in board["tracks"] if one["track"] == "cifar10-small-ipc5")
    names = {row.get("label") or row["method"] for row in track["rows"]}
    assert len(names) == len(track["rows"])
    assert {line.split(" | ")[0].lstrip("| ") for line in lines[4:] if line[:1] == "|"} == names


def test_latex_and_markdown_hold_several_tracks_side_by_side(runs, call) -> None:
    lines = call("table", runs, "--eps", ".1", "--format", "md", "--short-caption").splitlines()
    assert lines[2] == "| method | fast: 0.10 * | other: 0.10 * |"
    assert "| a | 69.6 ± 4.2 | 22.2 ± 0.0 |" in lines
    assert lines[-1] == "| end (reference) | 88.9 ± 0.0 | - |"
    latex = call("table", runs, "--eps", ".1", "--format", "latex")
    assert "\\multicolumn{1}{c}{fast@1, $\\ell_\\infty$}" in latex
    assert "method & 0.10$^{*}$ & 0.10$^{*}$ \\\\" in latex
    assert "\\midrule\n    end (reference)" in latex


def test_versions_and_splits_of_a_track_are_told_apart_side_by_side(runs) -> None:
    record = made_up("a", share(60))
    newer = record.track.model_copy(update={"version": 2})
    every = [record, forged(record, track=newer), forged(record, split="validation")]
    table = joint_table(panels(every, levels=[0.1]), "std")
    assert [column.heading for column in table.columns[1:]] == [
        "fast@1: 0.10",
        "fast@2: 0.10",
        "fast@1, validation split: 0.10",
    ]
    assert len({column.key for column in table.columns}) == 4


def test_a_short_caption_leaves_the_suite_out(runs, call) -> None:
    long = call("table", runs, "--format", "latex")
    short = call("table", runs, "--format", "latex", "--short-caption")
    assert "worst case over noise" in long
    assert "worst case" not in short
    assert "1 to 3 distillation seeds" in short


def test_the_best_of_a_column_is_bold_and_a_reference_never_is(runs) -> None:
    fast, _ = panel_tables(panels(read_runs([runs], print)), "none")
    place = [column.key for column in fast.columns].index("eps_0.10")
    assert [row.cells[place].best for row in fast.rows] == [True, False, False, False]


def test_intervals_are_those_of_the_bootstrap(runs, call) -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((2, 3, 2, 50)) < 0.6
    zeros = np.zeros_like(bits)
    told = [one.interval for one in compare(bits, zeros)]
    assert accuracy_intervals(bits) == told, "a difference from a method that is never right"
    (row,) = json.loads(
        call("table", runs / "other", "--spread", "interval", "--eps", ".1", "--json")
    )
    assert row["eps_0.10_low"] <= row["eps_0.10_mean"] <= row["eps_0.10_high"]
    shown = call("table", runs / "other", "--spread", "interval", "--eps", ".1")
    low, high = (100 * row[f"eps_0.10_{end}"] for end in ("low", "high"))
    assert f"22.2 [{low:.1f}, {high:.1f}]" in shown


def test_clean_accuracy_alone_can_be_asked_for(runs, call) -> None:
    lines = call("table", runs / "other", "--eps", "clean").splitlines()
    assert lines[1].split() == ["method", "images", "seeds", "clean"]
    assert "worst case" not in lines[-1]


def test_a_joint_table_of_one_track_is_that_of_the_track(runs) -> None:
    found = panels(read_runs([runs / "other"], print))
    assert joint_table(found, "std") == only(panel_tables(found, "std"))


# --- plots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_a_plot_is_the_same_bytes_whenever_it_is_drawn(runs, form) -> None:
    found = panels(read_runs([runs], print))
    one = plot_bytes(found, form)
    assert one == plot_bytes(found, form)
    assert one != plot_bytes(found, form, "none")


def test_a_plot_names_its_lines_and_levels(runs, call, tmp_path) -> None:
    path = tmp_path / "deep" / "figure.SVG"
    path.parent.mkdir()
    assert call("plot", runs, "--out", path).strip() == str(path)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8"))
    for text in ("a", "b (eps 0.10, lr 0.2)", "end (reference)", "clean", "0.10", "fast@1"):
        assert text in texts
    for colour in COLOURS[:4]:
        assert colour.lower() in path.read_text(encoding="utf-8").lower()


def test_the_width_of_a_plot_is_what_is_asked_for(runs, call, tmp_path) -> None:
    path = tmp_path / "figure.png"
    call("plot", runs / "other", "--out", path, "--width", "2.5")
    assert png_size(path.read_bytes())[0] == 750


@given(
    wanted=st.lists(st.floats(0, 100), min_size=1, max_size=12).map(sorted),
    least=st.floats(0.1, 8),
)
def test_names_are_moved_apart_and_no_further_than_needed(wanted, least) -> None:
    places = apart(wanted, least, 0.0, 100.0)
    assert all(b - a >= least - 1e-6 for a, b in pairwise(places))
    assert places[0] >= -1e-6
    assert places[-1] <= 100 + 1e-6
    if all(b - a >= least for a, b in pairwise(wanted)):
        assert places == pytest.approx(wanted)


def test_names_that_would_touch_are_centred_on_what_they_want() -> None:
    assert apart([50.0, 50.0, 90.0], 10.0, 0.0, 100.0) == pytest.approx([45.0, 55.0, 90.0])
    assert apart([1.0, 1.0], 10.0, 0.0, 100.0) == pytest.approx([0.0, 10.0])
    assert apart([99.0, 99.0, 99.0], 10.0, 0.0, 100.0) == pytest.approx([80.0, 90.0, 100.0])


# --- comparisons -----------------------------------------------------------------------------


def test_folders_are_compared_as_the_board_compares_methods(call) -> None:
    track = RESULTS / "digits-ipc1"
    found = json.loads(call("compare", track / "mat", track / "mtt", track / "random", "--json"))
    root = RESULTS.parent
    for one, method in zip(found, ("mtt", "random"), strict=True):
        told = call(
            "board", "compare", "mat", method, "--track", "digits-ipc1", "--json", "--board", root
        )
        assert one == json.loads(told)


def test_runs_of_two_tracks_cannot_be_compared(runs, call) -> None:
    end = only((runs / "fast" / "end").iterdir())
    line = call("compare", runs / "other", end, refused=True)
    assert "only runs of one version of one track, judged on one split, can be compared" in line


def test_a_comparison_on_validation_images_says_so(tmp_path, call) -> None:
    for method, right in (("a", 60), ("b", 50)):
        record = made_up(method, share(right))
        put(forged(record, split="validation"), tmp_path)
    shown = call("compare", *(tmp_path / "results" / "fast" / name for name in "ab"))
    assert shown.startswith("fast@1, validation split: a minus b in points; ")


# --- list runs -------------------------------------------------------------------------------


def test_runs_are_listed_with_what_became_of_them_and_what_differs(runs, call, tmp_path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    plan = plan_of("dm", "iterations=7")
    begun = plan.folder(tmp_path / "runs")
    write_json(begun / "plan.json", {"plan": plan.to_dict(), "started": "2026-01-01T00:00:00"})
    broken = tmp_path / "runs" / "fast" / "dm" / ("0" * 12)
    write_json(broken / "plan.json", {"plan": {}})
    lines = [line.split() for line in call("list", "runs", "--out", tmp_path / "runs").splitlines()]
    assert ["fast@1"] in lines
    assert [begun.name, "interrupted", "dm", "0"] in lines
    (low,) = (line for line in lines if line[1:2] == ["complete"] and "2/255," in line)
    assert low[2:] == ["b", "0", "100.0", "33.3", "eps", "2/255,", "lr", "0.1"]
    facts = json.loads(call("list", "runs", "--out", tmp_path / "runs", "--json"))
    assert len(facts) == 8
    (dm,) = (fact for fact in facts if fact["method"] == "dm")
    assert (dm["status"], dm["headline"], dm["config"]["iterations"]) == ("interrupted", None, 7)


def test_an_empty_folder_has_no_runs(tmp_path, call) -> None:
    assert call("list", "runs", "--out", tmp_path).strip() == f"no run under {tmp_path}"
    assert json.loads(call("list", "runs", "--out", tmp_path, "--json")) == []


# --- pictures of sets ------------------------------------------------------------------------


def test_every_pixel_of_a_set_is_a_square_of_the_picture(tmp_path, call) -> None:
    folder = example("random").folder
    distilled = DistilledSet.load(folder / "distilled.safetensors")
    call("picture", folder, "--out", tmp_path / "set.png", "--scale", "3", "--title", "")
    drawn = np.asarray(Image.open(tmp_path / "set.png").convert("RGB"))
    wanted = distilled.images[0, 0].mul(255).round().to(torch.uint8).numpy()
    enlarged = wanted.repeat(3, 0).repeat(3, 1)
    top, left = 4, drawn.shape[1] - 4 - 3 * 17
    found = drawn[top : top + 24, left : left + 24]
    assert (found == enlarged[..., None]).all()
    assert (drawn[top : top + 24, left + 24 : left + 27] == 255).all(), "the gap"


def test_rows_have_the_names_of_classes_and_a_title(tmp_path, call) -> None:
    call("picture", example("random").folder, "--out", tmp_path / "set.svg", "--images", "1")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "set.svg").read_text())
    assert texts == [*map(str, range(10)), "random, fast@1, seed 0"]
    record = example("random").record
    distilled = DistilledSet.load(example("random").folder / "distilled.safetensors")
    for facts, first in (
        ({"dataset": "cifar10"}, "airplane"),
        ({"classes": tuple("qwertyuiop")}, "q"),
    ):
        data = record.data.model_copy(update=facts)
        assert class_names(distilled, record.model_copy(update={"data": data}))[0] == first
    assert class_names(distilled, None)[9] == "9"


def test_a_set_without_a_run_is_drawn_as_well(tmp_path, call) -> None:
    source = example("random").folder / "distilled.safetensors"
    for form in ("pdf", "png"):
        call("picture", source, "--out", tmp_path / f"set.{form}")
        one = (tmp_path / f"set.{form}").read_bytes()
        call("picture", source, "--out", tmp_path / f"set.{form}")
        assert (tmp_path / f"set.{form}").read_bytes() == one
    assert "has no distilled.safetensors" in call(
        "picture", tmp_path, "--out", tmp_path / "x.png", refused=True
    )
    assert "a plot's name ends in" in call("picture", source, "--out", "x.gif", refused=True)

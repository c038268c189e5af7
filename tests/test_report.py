"""`robustdd report`: what it shows of runs that ended, failed or go on, and of hostile folders."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from array import array

import pytest
from pages import CHROMIUM, EVIL, FLAGS
from small_runs import copy_of, example, plan_of, run
from test_page import Tree

from robustdd_bench.cli.main import main
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.report import content
from robustdd_bench.report.charts import metric_charts, number_label, round_values
from robustdd_bench.report.content import make_report
from robustdd_bench.report.html import html, svg
from robustdd_bench.report.markdown import block, escaped, markdown
from robustdd_bench.report.reading import read_run
from robustdd_bench.report.series import MAX_SERIES, Series, read_metrics, thinned
from robustdd_bench.report.write import write_report
from robustdd_bench.runs.progress import NullReporter


def series(values, *, stage="distill/matching", name="loss"):
    steps = array("d", range(1, len(values) + 1))
    return Series(stage, name, steps, array("d", values))


def report_of(*folders):
    return make_report([read_run(folder) for folder in folders])


def words(text):
    return " ".join(" ".join(Tree(text).words).split())


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """The folder of a run that failed in its distillation."""
    out = tmp_path_factory.mktemp("failed")
    with pytest.raises(RunFailedError):
        run(plan_of("mtt", "image_lr=1e30", "image_optimiser=sgd"), out)
    return plan_of("mtt", "image_lr=1e30", "image_optimiser=sgd").folder(out)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run that was interrupted in its distillation."""

    class Interrupting(NullReporter):
        def metrics(self, step, **values):
            super().metrics(step, **values)
            if "alpha" in values and step == 2:
                raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(plan_of("mtt"), out, reporter=Interrupting)
    return plan_of("mtt").folder(out)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None and os.environ.get("ROBUSTDD_BROWSER_TESTS") != "required":
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


# Values.


def test_a_metrics_file_is_read_by_stage_and_name(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "stage": "a/b", "loss": 0.5, "alpha": 1}\n'
        '{"step": 2, "stage": "a/b", "loss": null, "alpha": NaN}\n'
    )
    found = read_metrics(path)
    assert [(s.head, s.place, s.name, list(s.steps)) for s in found.series] == [
        ("a", "b", "loss", [1, 2]),
        ("a", "b", "alpha", [1, 2]),
    ]
    assert [math.isnan(s.values[1]) for s in found.series] == [True, True]
    assert found.remarks == ()
    assert read_metrics(tmp_path / "none.jsonl").series == ()


def test_damaged_lines_are_counted_and_the_rest_is_read(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    sound = b'{"step": 3, "stage": "s", "loss": 1.5}\n'
    bad = [
        b'{"step": 1, "stage": "s", "lo',
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'"text"\n',
        b'{"step": 1e400, "stage": "s", "loss": 1}\n',
        b'{"step": 1, "stage": 7, "loss": 1}\n',
        b'{"step": 1, "stage": "s", "loss": "x"}\n',
        b'{"step": 1, "stage": "s", "loss": ' + b"1" * 5000 + b"}\n",
        b"[" * 60_000 + b"\n",
        b'{"step": 1, "stage": "s", "loss": 1' + b" " * 200_000 + b"}\n",
        b"null\n",
    ]
    path.write_bytes(bad[0] + b"\n" + sound.join(bad[1:]))
    found = read_metrics(path)
    assert found.remarks == (f"metrics.jsonl: {len(bad)} lines are damaged and left out",)
    assert list(found.series[0].values) == [1.5] * (len(bad) - 2)


def test_endless_names_are_bounded_and_a_folder_is_no_file(tmp_path) -> None:
    lines = (f'{{"step": 1, "stage": "s", "m{i}": 1}}\n' for i in range(MAX_SERIES + 9))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert len(found.series) == MAX_SERIES
    assert "more than 400 series" in found.remarks[0]
    assert "cannot be read" in read_metrics(tmp_path).remarks[0]


def test_a_long_series_is_thinned_and_keeps_extremes_gaps_and_ends() -> None:
    values = [math.sin(i / 50) for i in range(100_000)]
    values[54_321], values[7_777], values[33_333] = 40.0, -40.0, math.nan
    points = thinned(series(values), 400)
    assert len(points) <= 402
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    assert (54_322, 40.0) in points
    assert (7_778, -40.0) in points
    assert any(step == 33_334 and math.isnan(value) for step, value in points)
    assert [points[0][0], points[-1][0]] == [1, 100_000]
    short = series(values[:400])
    assert thinned(short, 400) == list(zip(short.steps, short.values, strict=True))
    assert thinned(series([math.nan] * 5000), 400)


# Plots.


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1.0, 50.0], False),
        ([0.1, 50.0], True),
        ([1e-300, 1e300], True),
        ([0.0, 50.0, 0.001], False),
        ([-1.0, 5000.0], False),
        ([-1e308, 1e308], False),
        ([3.0, 3.0], False),
        ([0.0], False),
        ([1e16, 1e16 + 2], False),
        ([5e-324, 1e-320], True),
        ([math.nan, math.nan], False),
    ],
)
def test_every_value_lies_in_the_plot_and_the_axis_suits_it(values, logarithmic) -> None:
    (chart,) = metric_charts([series(values)])
    assert ("logarithmic axis" in chart.notes) == logarithmic
    places = [point for line in chart.lines for point in line.points]
    assert len(places) == sum(not math.isnan(value) for value in values)
    for x, y in places:
        assert chart.left <= x <= chart.right
        assert chart.top <= y <= chart.bottom
    for tick in chart.y_ticks:
        assert chart.top - 1 <= tick.at <= chart.bottom + 1
        assert len(tick.text) <= 9
    assert len(chart.y_ticks) <= 13
    order = [value for value in values if not math.isnan(value)]
    heights = [-y for _, y in places]
    assert all(
        (a < b) <= (heights[i] <= heights[j])
        for i, a in enumerate(order)
        for j, b in enumerate(order)
    )


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    (chart,) = metric_charts([series([1.0, 2.0, math.nan, 3.0, math.nan, math.nan])])
    assert [len(piece) for piece in chart.lines[0].pieces] == [2, 1]
    assert "3 values not finite: gaps" in chart.notes
    many = [float(i) for i in range(50)]
    many[25] = math.nan
    many[27] = math.nan
    (chart,) = metric_charts([series(many)])
    assert [len(piece) for piece in chart.lines[0].pieces] == [25, 1, 22]
    assert svg(chart).count('class="dot"') == 1


def test_experts_share_a_plot_and_students_are_points() -> None:
    experts = [series([2.0, 1.0], stage=f"experts/expert {k}") for k in range(100)]
    students = series([0.5, 0.6, 0.7], stage="students", name="clean")
    some, many, points = (metric_charts(found)[0] for found in (experts[:3], experts, [students]))
    assert [line.label for line in some.legend] == ["expert 0", "expert 1", "expert 2"]
    assert (len(many.lines), many.legend) == (40, ())
    assert "the first 40 of 100" in many.notes
    assert [len(piece) for piece in points.lines[0].pieces] == [1, 1, 1]
    assert points.x_name == "student"


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.41, [0.15, 0.2, 0.25, 0.3])]
)
def test_ticks_are_round_numbers(low, high, wanted) -> None:
    assert round_values(low, high, 6)[: len(wanted)] == pytest.approx(wanted)


def test_numbers_are_short() -> None:
    assert [number_label(v) for v in (0.0, 0.25, 1500.0, 2e-7, 3e12, 1e-300)] == [
        "0", "0.25", "1500", "2e-7", "3e12", "1e-300",
    ]  # fmt: skip


# Runs.


def test_a_page_has_the_figures_settings_checks_costs_and_pictures_of_a_run() -> None:
    finished = example("mat")
    text = html(report_of(finished.folder))
    record, shown = finished.record, words(text)
    for value in (record.aggregates.clean, *(r.accuracy for r in record.aggregates.robust)):
        assert f"{100 * value.mean:.1f}" in shown
        assert f"{100 * value.low:.1f}–{100 * value.high:.1f}" in shown
    for flag in record.flags:
        assert flag.name in shown
        assert flag.evidence in shown
    for stage in record.costs.stages:
        assert stage.stage in shown
    for key in record.method.config:
        assert key in shown
    assert record.command in shown
    assert f"torch {record.torch}" in shown
    tree = Tree(text)
    assert len(tree.all("img")) == 4
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for a in tree.all("img"))
    titles = re.findall(r"<h4>(.*?)</h4>", text)
    assert {"loss, experts", "loss, distill (matching)", "alpha, distill (matching)"} <= set(titles)
    assert "clean, students" not in titles, "it is in the table"


def test_a_page_names_nothing_outside_itself_and_runs_nothing() -> None:
    text = html(report_of(example("mat").folder, example("random").folder))
    tree = Tree(text)
    assert tree.all("script") == tree.all("link") == []
    assert not any(key.startswith("on") or key == "style" for _, a in tree.tags for key in a)
    (policy,) = (a["content"] for a in tree.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    ids = [a["id"] for _, a in tree.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in tree.all("a")} <= set(ids)


def test_runs_of_one_track_are_compared_and_of_two_are_not(tmp_path) -> None:
    runs = example("mat"), example("random"), example("random", validate=True)
    report = report_of(*(finished.folder for finished in runs))
    assert [len(group.runs) for group in report.groups] == [2, 1]
    first, second = report.comparisons
    assert second is None
    assert [line.label for line in first.lines] == ["1: mat, seed 0", "2: random, seed 0"]
    shown = words(html(report))
    assert "mat, random on fast@" in shown
    assert "3: random, seed 0, validation" in shown


def test_settings_that_differ_are_listed(failed, interrupted) -> None:
    (group,) = report_of(failed, interrupted).groups
    differ = dict(group.different_settings())
    assert set(differ) == {"image_lr", "image_optimiser"}
    assert differ["image_optimiser"][0] == "sgd"


def test_a_failed_run_shows_its_reason_its_log_and_what_there_is(failed) -> None:
    shown = words(html(report_of(failed)))
    assert "Failed in distill" in shown
    assert "the method diverged" in shown
    assert "End of the log" in shown
    assert "RunFailedError" in shown
    assert "loss, experts" in shown
    assert "after 0 steps" in shown


def test_an_unfinished_run_shows_how_far_it_came(interrupted) -> None:
    shown = words(html(report_of(interrupted)))
    assert "Not finished" in shown
    assert "KeyboardInterrupt: interrupted; kept in" in shown
    assert "alpha, distill (matching)" in shown
    assert plan_of("mtt").command() in shown


def test_a_published_run_needs_no_more_than_its_record_and_picture(tmp_path) -> None:
    for name in ("record.json", "distilled.png"):
        shutil.copyfile(example("mat").folder / name, tmp_path / name)
    report = report_of(tmp_path / "record.json")
    assert report.runs[0].status == "complete"
    assert len(Tree(html(report)).all("img")) == 1
    assert report.metrics == ((),)


def test_snapshots_that_do_not_fit_are_thinned_and_both_ends_stay(monkeypatch) -> None:
    run_ = read_run(example("mat").folder)
    two = len(run_.pictures[0].data) + len(run_.pictures[-1].data)
    monkeypatch.setattr(content, "MAX_INLINE", two)
    report = make_report([run_])
    assert [p.name for p in report.pictures[0]] == ["step-00000000", "step-00000003"]
    assert "2 of 3 snapshots are shown" in words(html(report))
    monkeypatch.setattr(content, "MAX_INLINE", 10)
    assert [p.name for p in make_report([run_]).pictures[0]] == ["step-00000003"]


# Markdown.


def test_markdown_has_the_figures_and_names_only_files_that_it_brings() -> None:
    finished = example("mat")
    made = markdown(report_of(finished.folder, example("random").folder), "r_files")
    links = re.findall(r"!\[[^\]]*\]\(r_files/([^)]+)\)", made.text)
    assert sorted(links) == sorted(made.files)
    assert {name.rpartition(".")[2] for name in links} == {"svg", "png"}
    mean = 100 * finished.record.aggregates.headline.mean
    assert f"{mean:.1f}" in made.text
    assert finished.record.command in made.text
    for name, data in made.files.items():
        if name.endswith(".svg"):
            text = data.decode()
            assert 'xmlns="http://www.w3.org/2000/svg"' in text
            Tree(text)
    drawn = Tree(made.files["comparison-1.svg"].decode()).words
    assert {"1: mat, seed 0", "2: random, seed 0"} <= set(drawn)


def test_markdown_escapes_what_would_be_markup() -> None:
    assert escaped("a|b *c* <img> [x](y) &amp; `d`\n# e") == (
        "a|b \\*c\\* \\<img\\> \\[x\\](y) &amp;amp; \\`d\\` \\# e"
    )
    assert block(["a", "```", "b"]) == "````text\na\n```\nb\n````"


# Strangers.


@pytest.fixture(scope="module")
def stranger(interrupted, tmp_path_factory):
    """The folder of a run with hostile texts wherever one can be."""
    folder = tmp_path_factory.mktemp("stranger") / "run"
    shutil.copytree(interrupted, folder)
    plan = json.loads((folder / "plan.json").read_text())
    plan["plan"] |= {"plugin": EVIL[0], "distribution": EVIL[1], "version": EVIL[4]}
    plan["plan"]["config"] |= {text: text for text in EVIL}
    plan["plan"]["overrides"] = {f"key{i}": text for i, text in enumerate(EVIL)}
    plan["plan"]["track"]["summary"] = EVIL[2]
    (folder / "plan.json").write_text(json.dumps(plan))
    with (folder / "metrics.jsonl").open("a") as file:
        for text in EVIL:
            file.write(json.dumps({"step": 1, "stage": f"{text}/{text}", text: 1.0}) + "\n")
    (folder / "run.log").write_text("\n".join(EVIL))
    return folder


def test_texts_of_a_stranger_are_texts(stranger) -> None:
    report = report_of(stranger)
    text = html(report)
    tree = Tree(text)
    assert tree.all("script") == []
    assert [a["src"][:5] for a in tree.all("img")] == ["data:"] * len(tree.all("img"))
    assert "\u202e" not in text
    assert "\x07" not in text
    made = markdown(report, "f")
    assert "\u202e" not in made.text
    assert all("<script" not in data.decode() for n, data in made.files.items() if n[-3:] == "svg")
    outside = re.sub(r"(`{3,})text\n.*?\n\1", "", made.text, flags=re.S)
    assert not re.search(r"(?<!\\)<", outside)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_pages_without_complaint_and_without_scrolling_sideways(
    width, browser, stranger, failed, tmp_path
) -> None:
    write_report([example("mat").folder, failed, stranger], tmp_path / "r.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: wrong.append(request.url))
    page.goto((tmp_path / "r.html").as_uri())
    asked = [url for url in wrong if not url.startswith("data:image/png")]
    assert asked == [(tmp_path / "r.html").as_uri()]
    assert "owned" not in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    page.close()


def test_links_and_files_that_are_no_pictures_are_left_out(tmp_path) -> None:
    folder = copy_of(example("mat"), tmp_path)
    (folder / "distilled.png").write_text("no picture")
    secret = tmp_path / "secret.png"
    shutil.copyfile(folder / "snapshots" / "00000003.png", secret)
    (folder / "snapshots" / "00000003.png").unlink()
    (folder / "snapshots" / "00000003.png").symlink_to(secret)
    found = read_run(folder)
    assert found.final is None
    assert [picture.name for picture in found.pictures] == ["step-00000000", "step-00000001"]


@pytest.mark.parametrize(
    "content_",
    [
        "{}",
        "[]",
        "not json",
        "OVERRIDES",
        '{"plan": {}}',
        '{"plan": {"method": "x"}}',
        '{"plan": NaN}',
    ],
)
def test_a_damaged_plan_is_one_line(content_, interrupted, tmp_path) -> None:
    if content_ == "OVERRIDES":
        plan = json.loads((interrupted / "plan.json").read_text())
        plan["plan"]["overrides"] = {"a=b": "text"}
        content_ = json.dumps(plan)
    (tmp_path / "plan.json").write_text(content_)
    with pytest.raises(UsageError, match=r"plan\.json is not"):
        read_run(tmp_path)


# The command.


def test_the_command_writes_a_page_and_prints_its_path(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(example("mat").folder)
    assert main(["report", folder]) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    (tmp_path / "dir").mkdir()
    assert main(["report", folder, folder, "--out", "dir", "--format", "md", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == "dir/report.md"
    assert (tmp_path / "dir" / "report.md").read_text().startswith("# mat on fast")
    assert said["files"]
    assert all((tmp_path / name).is_file() for name in said["files"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir", "report.html"]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["nowhere"], "no run there: nowhere is not a folder"),
        (["empty"], "has neither record.json nor plan.json"),
        (["RUN", "--out", "nowhere/a.html"], "there is no folder nowhere"),
        (["RUN", "--out", "a.pdf"], "ends in .html or .md"),
        (["RUN", "--out", "new"], "ends in .html or .md"),
        (["RUN", "--out", "a.md", "--format", "html"], "is no name for --format html"),
        (["RUN", "--format", "pdf"], "unknown format 'pdf'"),
        ([], "missing argument"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(args, reason, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    run_ = str(example("random").folder)
    assert main(["report", *(run_ if word == "RUN" else word for word in args)]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_place_that_cannot_be_written_is_a_failure_in_one_line(tmp_path) -> None:
    (tmp_path / "r_files").write_text("in the way")
    with pytest.raises(RunFailedError, match="cannot write"):
        write_report([example("random").folder], tmp_path / "r.md")
    assert not (tmp_path / "r.md").exists()


def test_the_same_runs_give_the_same_report() -> None:
    folders = example("mat").folder, example("random").folder
    assert html(report_of(*folders)) == html(report_of(*folders))

"""`robustdd report`: what it shows of runs that ended, failed or go on, and of hostile folders."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from commands import press_ctrl_c
from pages import CHROMIUM, EVIL, FLAGS
from small_runs import copy_of, example, plan_of, run
from test_page import Tree

from robustdd_bench.cli.main import main
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.report import content
from robustdd_bench.report.content import make_report
from robustdd_bench.report.html import html
from robustdd_bench.report.markdown import block, escaped, markdown
from robustdd_bench.report.reading import read_run
from robustdd_bench.report.write import write_report
from robustdd_bench.runs.progress.displays import NullReporter


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
                press_ctrl_c()

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
    assert record.command_to_repeat in shown
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
    assert finished.record.command_to_repeat in made.text
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

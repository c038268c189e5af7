"""`robustdd board validate`: every problem of a board, at once."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from made_up import made_up, put, share

from robustdd_bench.board.build import build
from robustdd_bench.board.validate import validate
from robustdd_bench.cli.main import main


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("built")
    for method, right in (("a", 60), ("b", 40)):
        put(made_up(method, share(right)), root)
    build(root)
    return root


@pytest.fixture
def root(built, tmp_path) -> Path:
    """A copy of a sound board."""
    return Path(shutil.copytree(built, tmp_path / "board"))


def folder_of(root: Path, method: str) -> Path:
    (found,) = root.glob(f"results/*/{method}/*")
    return found


def problems(root: Path) -> dict[str, str]:
    return {item.place: item.problem for item in validate(root).problems}


def reported(root: Path, name: str, text: str) -> None:
    (root / "reported").mkdir(exist_ok=True)
    (root / "reported" / name).write_text(text)


def test_a_sound_board_is_valid(root, capsys) -> None:
    assert main(["board", "validate", "--board", str(root)]) == 0
    assert capsys.readouterr().out == "2 published runs are valid\n"
    assert main(["board", "validate", "--board", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    places = [folder_of(root, method).relative_to(root).as_posix() for method in "ab"]
    assert found == {"valid": True, "runs": places, "problems": []}


def test_all_problems_are_named_not_the_first_alone(root, capsys) -> None:
    a, b = folder_of(root, "a"), folder_of(root, "b")
    (a / "distilled.png").unlink()
    (a / "distilled.safetensors").write_bytes(b"nothing")
    (a / "submission.json").write_text('{"by": 1}')
    (b / "record.json").write_text("{")
    (b / "submission.json").write_text("[")
    moved = put(made_up("c", share(20)), root)
    shutil.move(moved, moved.with_name("0" * 12))
    (root / "results" / "fast" / "d" / "empty").mkdir(parents=True)
    reported(root, "one.json", "{}")
    reported(root, "Two.json", "{}")
    assert main(["board", "validate", "--board", str(root), "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] is False
    assert found["runs"] == []
    said = [(item["place"], item["problem"]) for item in found["problems"]]
    wanted = [
        (a, "is not a safetensors file"),
        (a, "distilled.png is missing"),
        (a / "submission.json", "is not a valid submission: by"),
        (b / "record.json", "is not readable JSON"),
        (b / "submission.json", "is not readable JSON"),
        (moved.with_name("0" * 12), f"the record belongs under fast/c/{moved.name}"),
        (root / "results" / "fast" / "d" / "empty" / "record.json", "no file results/fast/d"),
        (root / "reported" / "one.json", "is not a file of reported figures: title"),
        (root / "reported" / "Two.json", "its name must be of a-z, 0-9 and hyphens"),
        (root / "leaderboard.json", "not compared"),
        (root / "index.html", "not compared"),
    ]
    assert len(said) == len(wanted)
    for place, text in wanted:
        name = place.relative_to(root).as_posix()
        assert any(where == name and text in what for where, what in said), (name, text)
    assert str(root) not in "".join(what for _, what in said)


def test_a_track_that_changed_without_a_new_version_is_found(root) -> None:
    from small_runs import TRACK, plan_of, run

    text = TRACK.read_text().replace("epochs = 3", "epochs = 2", 1)
    other = root.parent / "other.toml"
    other.write_text(text)
    made = run(plan_of("random", track=str(other)), root.parent / "runs")
    # By hand: `robustdd publish` refuses it.
    place = f"results/fast/random/{made.record.run_id}"
    (root / place).mkdir(parents=True)
    for name in ("record.json", "distilled.safetensors", "distilled.png"):
        shutil.copyfile(made.folder / name, root / place / name)
    assert "a changed protocol needs a new version" in problems(root)[place]


@pytest.mark.parametrize("name", ["leaderboard.json", "index.html"])
def test_what_was_built_has_to_be_what_the_records_give(root, name) -> None:
    file = root / name
    text = file.read_text()
    file.write_text(text + "\n")
    assert list(problems(root)) == [name]
    file.unlink()
    assert problems(root) == {name: "is missing; `robustdd board build` writes it"}
    file.mkdir()
    assert "cannot be read" in problems(root)[name]


def test_a_figure_changed_by_hand_is_pointed_at(root) -> None:
    file = root / "leaderboard.json"
    board = json.loads(file.read_text())
    board["tracks"][0]["rows"][1]["clean"]["mean"] = 0.999
    file.write_text(json.dumps(board))
    assert "(tracks.0.rows.1.clean.mean)" in problems(root)["leaderboard.json"]
    for row in board["tracks"][0]["rows"]:
        row |= {"method": "x", "seeds": [], "images": 3}
    file.write_text(json.dumps(board))
    assert "and 4 more)" in problems(root)["leaderboard.json"]
    for damaged in ("[]", "{", '{"board_version": 3}', "\udc80"):
        file.write_bytes(damaged.encode("utf-8", "surrogateescape"))
        assert "(it is not a valid board)" in problems(root)["leaderboard.json"]


def test_a_run_published_after_the_board_was_built_makes_it_stale(root) -> None:
    put(made_up("c", share(20)), root)
    made = {f"runs/{path.parent.name}.html" for path in root.glob("results/*/*/*/record.json")}
    named = set(problems(root))
    assert {"leaderboard.json", "index.html"} < named
    assert named - {"leaderboard.json", "index.html"} <= made
    assert "stale" in problems(root)["leaderboard.json"]
    build(root)
    assert problems(root) == {}


def test_what_a_killed_publication_left_is_no_problem(root) -> None:
    (folder_of(root, "a").parent / ".publishing.abc").mkdir()
    assert problems(root) == {}


def test_problems_come_as_a_table_csv_and_markdown(root, capsys) -> None:
    (folder_of(root, "a") / "distilled.png").unlink()
    (root / "results" / "fast" / "=cmd|\x1b[31m" / "<i>").mkdir(parents=True)
    printed = {}
    for form in ("table", "csv", "md"):
        assert main(["board", "validate", "--board", str(root), "--format", form]) == 1
        printed[form] = capsys.readouterr().out
        assert "\x1b" not in printed[form]
    assert printed["table"].startswith("4 problems; 1 published runs are valid\nplace")
    rows = csv.DictReader(io.StringIO(printed["csv"]))
    said = {row["place"]: row["problem"] for row in rows}
    place = folder_of(root, "a").relative_to(root).as_posix()
    assert said[place] == "distilled.png is missing"
    assert "/=cmd\\| \\[31m/\\<i\\>/record.json" in printed["md"]
    assert main(["board", "validate", "--board", str(root), "--format", "latex"]) == 2


def test_an_empty_board_is_valid_and_a_missing_one_is_a_wrong_call(tmp_path, capsys) -> None:
    assert problems(tmp_path) == {}
    assert main(["board", "validate", "--board", str(tmp_path / "no\nwhere")]) == 2
    assert capsys.readouterr().err == f"error: no folder {tmp_path}/no where\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_record_is_a_problem(root) -> None:
    (folder_of(root, "a") / "record.json").chmod(0)
    assert any("record.json" in place for place in problems(root))

"""`robustdd board compare` and `board show` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import made_up, put, share
from publishing import forged
from small_runs import TRACK, plan_of, run

from robustdd_bench.board.publish import publish
from robustdd_bench.board.views.captions import RULE
from robustdd_bench.cli.main import main


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Path:
    """Methods a (seeds 0, 1, 2) and b (seeds 1, 2, 3), and one with soft labels."""
    root = tmp_path_factory.mktemp("board")
    found = [made_up("a", share(60), seed=seed) for seed in (0, 1, 2)]
    found += [made_up("b", share(40), seed=seed) for seed in (1, 2, 3)]
    found += [made_up("softened", share(80), labels="soft"), made_up("twice", share(50))]
    found += [made_up("twice", share(30), settings=1)]
    track = found[0].track.model_copy(update={"ranked_seeds": 4})
    for record in found:
        put(forged(record, track=track), root)
    return root


@pytest.fixture
def call(board, capsys):
    """What a call prints on stdout; a refused one: its line on stderr."""

    def calling(*args: str, root: Path = board, refused: bool = False) -> str:
        code = main(["board", *args, "--board", str(root)])
        printed = capsys.readouterr()
        assert code == (2 if refused else 0), printed.err
        if refused:
            assert printed.out == ""
            assert printed.err.startswith("error: ")
            assert printed.err.count("\n") == 1
            return printed.err
        assert printed.err == ""
        return printed.out

    return calling


def run_id(board: Path, method: str, seed: int) -> str:
    records = [json.loads(p.read_text()) for p in board.glob(f"results/*/{method}/*/record.json")]
    (found,) = (r["run_id"] for r in records if r["seed"] == seed)
    return found


def test_a_comparison_is_a_row_a_level_and_says_what_is_paired(call) -> None:
    lines = call("compare", "a", "b").splitlines()
    assert lines[0] == (
        "fast@1: a minus b in points; paired: seed 1, 2 (2 students each, 90 examples); "
        "a has seed 0 alone; b has seed 3 alone; Linf eps, * headline"
    )
    assert lines[1].split() == [
        *("eps", "a", "b", "difference", "95%", "interval", "p", "(McNemar)")
    ]
    assert [line.split()[0] for line in lines[2:5]] == ["clean", "0.05", "0.10"]
    assert " ".join(lines[2].split()) == "clean 100.0 100.0 +0.0 +0.0 to +0.0 1.000"
    assert lines[4].split()[:5] == ["0.10", "*", "66.7", "44.4", "+22.2"]
    assert lines[4].endswith("< 0.001")
    assert lines[5:] == [
        "Worst case over noise, fgsm, pgd at every eps; what is broken at one eps counts as broken "
        "at every larger one.",
        "Each 95 % interval is a bootstrap over seeds, students and examples (10000 resamples), "
        "not corrected for the number of eps or of pairs that are looked at. Ranks separate no "
        "pair with fewer than 3 seeds in common, as this one.",
    ]
    across = call("compare", "a", "softened").splitlines()[-1]
    assert across.endswith("The two are of different divisions and are never ranked together.")


def test_json_holds_the_same_comparison(call, board) -> None:
    found = json.loads(call("compare", "a", "b", "--json"))
    assert (found["track"], found["version"], found["seeds"]) == ("fast", 1, [1, 2])
    assert found["left_out"] == {"a": [0], "b": [3]}
    assert set(found["a"]["runs"]) == {run_id(board, "a", seed) for seed in (0, 1, 2)}
    assert [level["eps"] for level in found["levels"]] == [0, 0.05, 0.1]
    headline = found["levels"][2]
    assert headline["difference"] == pytest.approx(20 / 90)
    assert 0 < headline["interval"]["low"] < 20 / 90 < headline["interval"]["high"]
    assert headline["p"] == pytest.approx(2 * 2 / 2**20)  # the second of four networks
    assert call("compare", "a", "b", "--json") == call("compare", "a", "b", "--json")


def test_a_run_id_stands_for_its_standing(call, board) -> None:
    by_name = json.loads(call("compare", "a", "b", "--json"))
    by_id = call("compare", run_id(board, "a", 0), run_id(board, "b", 2), "--json")
    assert json.loads(by_id) == by_name


def test_a_standing_compared_with_itself_does_not_differ(call) -> None:
    for level in json.loads(call("compare", "a", "a", "--json"))["levels"]:
        assert (level["difference"], level["p"]) == (0, 1)
        assert level["interval"] == {"low": 0, "high": 0}
    assert "A: a (" in call("compare", "a", "a")


def test_several_configurations_ask_for_the_run_id(call, board) -> None:
    line = call("compare", "a", "twice", refused=True)
    ids = [p.parent.name for p in board.glob("results/fast/twice/*/record.json")]
    assert "twice stands 2 times on fast@1" in line
    assert all(name in line for name in ids)
    assert json.loads(call("compare", "a", ids[0], "--json"))["b"]["runs"] == [ids[0]]


def test_what_cannot_be_compared_is_refused_in_a_line(call, tmp_path) -> None:
    assert "did you mean 'twice'?" in call("compare", "a", "twic", refused=True)
    wrong = call("compare", "a", "b", "--track", "fasst", refused=True)
    assert "unknown track on this board 'fasst'; did you mean 'fast'?" in wrong
    line = call("compare", "b", "softened", refused=True)
    assert "no distillation seed in common (1, 2, 3 and 0)" in line
    nothing = call("compare", "a", "b", refused=True, root=tmp_path)
    assert "nothing is published" in nothing


def published_on(root: Path, folder: Path, name: str, *, version: int = 1) -> str:
    """Publish random selection on another track; its run id."""
    text = TRACK.read_text().replace('name = "fast"', f'name = "{name}"', 1)
    track = folder / f"{name}{version}.toml"
    track.write_text(text.replace("version = 1", f"version = {version}"))
    finished = run(plan_of("random", track=str(track)), folder / "runs")
    publish(finished.folder, root)
    return finished.record.run_id


def test_only_one_version_of_one_track_is_compared(call, tmp_path) -> None:
    root = tmp_path / "board"
    old = published_on(root, tmp_path, "fast")
    new = published_on(root, tmp_path, "fast", version=2)
    line = call("compare", old, new, root=root, refused=True)
    assert f"{old} is on fast@1 and {new} on fast@2: only runs of one version" in line
    assert "only runs of one version" in call("compare", old, "random", root=root, refused=True)
    assert json.loads(call("compare", new, "random", "--json", root=root))["version"] == 2
    other = published_on(root, tmp_path, "other")
    assert "only runs of one version" in call("compare", other, new, root=root, refused=True)
    line = call("compare", "random", "random", root=root, refused=True)
    assert "meet on fast@2, other@1; choose with --track" in line
    chosen = call("compare", "random", "random", "--track", "other", "--json", root=root)
    assert json.loads(chosen)["track"] == "other"


def test_the_board_shows_ranks_and_a_table_a_division(call) -> None:
    tables = call("show").split("fast@1, ")[1:]
    assert [table.split(":")[0] for table in tables] == ["hard labels", "soft labels"]
    hard = [line.split()[:2] for line in tables[0].splitlines()[1:]]
    # a and b have two seeds in common, and the others one each: too few to separate any two.
    assert hard == [["rank", "method"], ["1", "a"], ["1", "twice"], ["1", "b"], ["1", "twice"]]
    soft, *notes = tables[1].splitlines()[2:]
    assert soft.split()[:2] == ["1", "softened"]
    assert notes == [
        "fast@1: worst case over noise, fgsm, pgd at every eps; what is broken at one eps counts "
        "as broken at every larger one.",
        RULE,
    ]


def test_the_fields_scores_are_shown_when_asked_for(call) -> None:
    assert "I-RR" not in call("show")
    hard = call("show", "--scores").split("soft labels")[0].splitlines()
    assert " ".join(hard[1].split()) == "rank method clean headline DR RR I-RR gain gain *"
    assert " ".join(hard[2].split()) == "1 a 100.0 66.7 33.3 66.7 96.3 - -"

"""What the end of a run says beside its figures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from made_up import made_up, put, share
from publishing import forged

from robustdd_bench.board.build import build
from robustdd_bench.cli.main import main
from robustdd_bench.cli.shared.afterwards import afterwards


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Path:
    """Seed 0 of a and end, seed 1 of b, seed 0 of two settings of c."""
    root = tmp_path_factory.mktemp("a board")
    put(made_up("a", share(60)), root)
    put(made_up("b", share(70), seed=1), root)
    put(made_up("c", share(65)), root)
    put(made_up("c", share(50), lr=1), root)
    put(made_up("end", share(80), reference=True), root)
    build(root)
    return root


def test_the_rows_of_the_track_stand_beside_the_run(board, tmp_path) -> None:
    line, *_ = afterwards(made_up("mine", share(45)), tmp_path, board)
    rows = "end (reference) 88.9, b 77.8, c 72.2, a 66.7, c (lr 1) 55.6"
    assert line == f"published on fast@1 ({board}), at 0.10: {rows}; this run 50.0"


def test_the_next_commands_can_be_called(board, tmp_path, capsys, monkeypatch) -> None:
    folder = put(made_up("mine", share(45)), tmp_path)
    _, report, comparison = afterwards(made_up("mine", share(45)), folder, board)
    assert report == f"next: robustdd report {folder}"
    words = shlex.split(comparison.removeprefix("next: robustdd "))
    assert words == ["compare", str(folder), str(board / "results" / "fast" / "a")], (
        "b has no seed 0, c two settings, and the end of the scale is no method"
    )
    assert main(words) == 0
    assert "mine minus a in points" in capsys.readouterr().out


def test_a_run_is_not_set_beside_its_own_method(board, tmp_path) -> None:
    *_, last = afterwards(made_up("a", share(61)), tmp_path / "t" / "a" / "run", board)
    assert last == f"next: robustdd table {tmp_path / 't'}", "c has two settings, b no seed 0"


def test_a_run_is_not_set_beside_a_set_made_elsewhere(board, tmp_path) -> None:
    content = json.loads((board / "leaderboard.json").read_text())
    (row,) = (row for row in content["tracks"][0]["rows"] if row["method"] == "a")
    row["plugin"] = "builtin"
    (tmp_path / "leaderboard.json").write_text(json.dumps(content))
    *_, last = afterwards(made_up("mine", share(45)), tmp_path / "t" / "m" / "run", tmp_path)
    assert last == f"next: robustdd table {tmp_path / 't'}"


def test_without_a_row_to_pair_the_next_command_is_a_table(board, tmp_path, capsys) -> None:
    folder = put(made_up("mine", share(45), seed=3), tmp_path)
    _, _, table = afterwards(made_up("mine", share(45), seed=3), folder, board)
    assert table == f"next: robustdd table {folder.parents[1]}"
    assert main(shlex.split(table.removeprefix("next: robustdd "))) == 0
    assert "mine" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tracks": [{}]}', '{"tracks": 3}', None])
def test_without_a_board_there_is_none_beside_the_run(tmp_path, text) -> None:
    if text is not None:
        (tmp_path / "leaderboard.json").write_text(text)
    lines = afterwards(made_up("mine", share(45)), tmp_path / "t" / "m" / "run", tmp_path)
    assert [line.split()[:3] for line in lines] == [
        ["next:", "robustdd", "report"],
        ["next:", "robustdd", "table"],
    ]


def test_a_validation_run_and_another_version_have_no_row_beside_them(board, tmp_path) -> None:
    record = made_up("mine", share(45))
    other = record.track.model_copy(update={"version": 2})
    for one in (forged(record, split="validation"), forged(record, track=other)):
        assert all(line.startswith("next: ") for line in afterwards(one, tmp_path, board))

"""`robustdd run`, `evaluate`, `publish` and `board` as a user calls them.

The run that most of it is about, and the one that is interrupted, are processes of their own.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import interrupted, robustdd
from publishing import install_fast

from robustdd_bench.distillers import DistilledSet

TRACK = str(Path(__file__).parent / "data" / "fast.toml")
MATCHING = ("experts=2", "start_epochs=1", "match_epochs=1", "student_steps=2", "image_lr=0.1")


def sets(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def words(out: Path, method: str, *args: str) -> list[str]:
    """The call of a run."""
    place = ("--out", str(out), "--threads", "1")
    return ["run", "--method", method, "--track", TRACK, *place, *args]


def run(out: Path, method: str, *args: str) -> subprocess.CompletedProcess[str]:
    return robustdd(*words(out, method, *args))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run of method random: the folder of all runs, and what --json printed."""
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "robustdd_bench", *words(out, "random", "--json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out, json.loads(result.stdout)


def test_json_is_all_that_is_printed_on_stdout(finished: tuple[Path, dict]) -> None:
    _, summary = finished
    assert summary["status"] == "complete"
    assert summary["method"] == "random"
    assert [row["eps"] for row in summary["robust"]] == [0.05, 0.1]
    assert summary["clean"]["n_students"] == 2
    assert Path(summary["folder"]).name == summary["run_id"]


def test_the_promised_files_are_there(finished: tuple[Path, dict]) -> None:
    _, summary = finished
    names = {path.name for path in Path(summary["folder"]).iterdir()}
    promised = {"record.json", "distilled.safetensors", "distilled.png", "robustness.png"}
    assert promised | {"run.log", "metrics.jsonl"} <= names


def test_the_same_call_again_shows_the_table_of_the_same_run(finished: tuple[Path, dict]) -> None:
    out, summary = finished
    again = run(out, "random")
    assert again.returncode == 0
    assert "this run had ended before" in again.stderr
    lines = again.stdout.splitlines()
    assert lines[1].split() == ["method", "images", "clean", "0.05", "0.10", "*"]
    assert lines[2].split()[:2] == ["random", "20"]
    clean = f"{100 * summary['clean']['mean']:.1f}"
    assert lines[2].split()[2] == clean
    assert "\x1b" not in again.stdout + again.stderr


def test_show_run_tells_the_same_figures(finished: tuple[Path, dict]) -> None:
    _, summary = finished
    shown = robustdd("show", "run", summary["folder"], "--json")
    assert json.loads(shown.stdout)["clean"] == summary["clean"]
    assert (
        f"{100 * summary['clean']['mean']:.1f}" in robustdd("show", "run", summary["folder"]).stdout
    )


def test_the_command_in_the_record_is_the_same_run_for_whoever_has_the_record(
    finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, summary = finished
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(Path(summary["folder"]) / "record.json", "record.json")
    call = summary["command"].split()[1:]
    assert call[call.index("--track") + 1] == "record.json"
    again = robustdd(*call, "--out", str(out), "--json")
    assert "this run had ended before" in robustdd(*call, "--out", str(out)).stderr
    assert json.loads(again.stdout) == summary


def test_a_run_is_a_track_wherever_it_lies(finished: tuple[Path, dict], tmp_path: Path) -> None:
    folder = finished[1]["folder"]
    protocol = json.loads(robustdd("show", "track", TRACK, "--json").stdout)["fields"]
    for name in (folder, f"{folder}/record.json"):
        words = ("run", "--method", "mat", "--track", name, "--out", str(tmp_path), "--dry-run")
        plan = json.loads(robustdd(*words, "--json").stdout)
        assert plan["track"] == protocol
        assert plan["track_source"] == "record.json"
        shown = json.loads(robustdd("show", "track", name, "--json").stdout)
        assert shown["fields"] == protocol
        assert shown["source"] == f"{folder}/record.json"
        assert shown["command"].endswith(f"--track {name}")


def test_a_dry_run_prints_every_setting_and_writes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "mat", "--dry-run", *sets("ema=0.5"))
    assert result.returncode == 0
    lines = (line.split(maxsplit=1) for line in result.stdout.splitlines())
    settings = dict(pair for pair in lines if len(pair) == 2)
    assert settings["ema"] == "0.5"
    assert re.search(r"^attack pgd +steps 2, ", result.stdout, re.MULTILINE)
    assert "{" not in result.stdout
    assert settings["method"].startswith("mat (plugin mat")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "mta"], "unknown method 'mta'; did you mean"),
        (["--method", "mat", "--track", "digit-ipc10"], "did you mean 'digits-ipc10'?"),
        (["--method", "mat", *sets("epz=1")], "unknown key 'epz'; did you mean 'eps'?"),
        (["--method", "mat", *sets("ema=2")], "ema must be less than 1, not 2"),
        (["--method", "mat", *sets("eps=abc")], "eps: Input should be a valid number"),
        (["--method", "mat", *sets("image_lr=nan")], "NaN and infinity are not accepted"),
        (["--method", "random", "--seed", "-1"], "--seed must not be negative"),
        (["--method", "random", "--device", "gpu"], "unknown device 'gpu'"),
        (["--method", "random", "--preset", "nope"], "unknown preset 'nope'; known: default"),
        (["--method", "random", "--track", "cifar10-ipc1", "--data-root", "nowhere"], "CIFAR10"),
        (["--method", "given"], "robustdd evaluate"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(args: list[str], message: str, tmp_path: Path) -> None:
    result = robustdd("run", *args, "--out", str(tmp_path))
    assert result.returncode == 2
    assert result.stdout == ""
    complaint = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(complaint) == 1
    assert message in complaint[0]
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_a_run_that_diverges_is_recorded_as_failed_with_exit_1(tmp_path: Path) -> None:
    assignments = sets(*MATCHING[:-1], "iterations=3", "image_lr=1e38")
    result = run(tmp_path, "mtt", *assignments)
    assert result.returncode == 1
    assert len([x for x in result.stderr.splitlines() if x.startswith("error: ")]) == 1
    (path,) = tmp_path.rglob("record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "failed"
    assert record["failure"]["stage"] == "distill"
    assert "NaN" not in path.read_text()


def test_ctrl_c_keeps_what_is_done_and_the_next_call_ends_in_the_same_record(
    tmp_path: Path,
) -> None:
    assignments = sets(*MATCHING, "iterations=40", "checkpoint_seconds=0.0")
    cut = interrupted(tmp_path, *words(tmp_path / "cut", "mtt", *assignments))
    assert cut.returncode == 130
    assert "experts 2/2, a checkpoint of the distillation" in cut.stderr
    assert "Repeat the command to resume." in cut.stderr
    assert not list(tmp_path.rglob("record.json"))
    for name in ("cut", "whole"):
        assert run(tmp_path / name, "mtt", *assignments).returncode == 0
    cut, whole = (
        json.loads(next((tmp_path / name).rglob("record.json")).read_text())
        for name in ("cut", "whole")
    )
    assert {key for key in cut if cut[key] != whole[key]} == {"costs"}


def test_evaluating_a_set_gives_the_figures_of_the_run_that_made_it(
    finished: tuple[Path, dict],
) -> None:
    out, summary = finished
    path = Path(summary["folder"]) / "distilled.safetensors"
    arguments = ("--track", TRACK, "--out", str(out), "--threads", "1", "--json")
    result = robustdd("evaluate", str(path), *arguments)
    assert result.returncode == 0, result.stderr
    judged = json.loads(result.stdout)
    assert judged["clean"] == summary["clean"]
    assert judged["robust"] == summary["robust"]
    assert not judged["publishable"] or judged["method"] == "given"


def test_evaluating_nonsense_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a set")
    for name in (str(bad), "missing.safetensors"):
        result = robustdd("evaluate", name, "--track", TRACK, "--out", str(tmp_path / "out"))
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1


def test_a_set_of_another_shape_is_refused(tmp_path: Path) -> None:
    wrong = DistilledSet(images=torch.zeros(20, 3, 8, 8), labels=torch.arange(10).repeat(2))
    wrong.save(tmp_path / "wrong.safetensors")
    result = robustdd(
        "evaluate",
        str(tmp_path / "wrong.safetensors"),
        *("--track", TRACK, "--out", str(tmp_path / "out"), "--threads", "1"),
    )
    assert result.returncode in (1, 2)
    assert "(n, *(1, 8, 8))" in result.stderr


def test_publishing_and_the_board(
    finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, summary = finished
    board = ("--board", str(tmp_path))
    empty = robustdd("board", "show", *board)
    assert empty.returncode == 2
    assert "nothing is published" in empty.stderr
    refused = robustdd("publish", summary["folder"], *board)
    assert refused.returncode == 2
    assert "its track fast is not installed here" in refused.stderr
    with monkeypatch.context() as during:
        during.syspath_prepend(install_fast(tmp_path / "site"))
        done = robustdd("publish", summary["folder"], *board, "--by", "A & B")
    sys.modules.pop("robustdd_fast")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "record.json").is_file()
    assert json.loads((folder / "submission.json").read_text())["by"] == "A & B"
    shown = robustdd("board", "show", *board)
    assert "random" in shown.stdout
    assert robustdd("board", "validate", *board).stdout == "1 published runs are valid\n"
    document = json.loads((tmp_path / "leaderboard.json").read_text())
    assert document["tracks"][0]["rows"][0]["runs"][0]["clean"] == summary["clean"]


def test_a_validation_run_says_so_and_is_not_published(tmp_path: Path) -> None:
    result = run(tmp_path, "random", "--validate", "--json")
    summary = json.loads(result.stdout)
    assert summary["split"] == "validation"
    refused = robustdd("publish", summary["folder"], "--board", str(tmp_path / "board"))
    assert refused.returncode == 2
    assert "validation split" in refused.stderr
    assert not (tmp_path / "board").exists()

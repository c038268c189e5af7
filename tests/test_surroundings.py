"""What users' machines put in the way: pipes in place of files, byte order marks, odd streams."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_runs import TRACK, example, registry

from robustdd_bench.cli.main import main
from robustdd_bench.errors import UsageError
from robustdd_bench.files import require_regular
from robustdd_bench.imports.formats import choose
from robustdd_bench.imports.readers import READERS
from robustdd_bench.protocol.tracks import load_track
from robustdd_bench.report.series import read_metrics
from robustdd_bench.sweeps.file import read_sweep_file

ROOT = Path(__file__).parents[1]


def within(seconds: float, call):
    """The result of a call, which must not wait for what never comes."""
    result: list = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it waits"
    return result[0]


@pytest.mark.parametrize(
    "words",
    [
        ("show", "run", "{run}"),
        ("report", "{run}"),
        ("publish", "{run}"),
        ("verify", "{run}"),
        ("evaluate", "{run}"),
        ("table", "{run}"),
        ("evaluate", "{folder}/set.safetensors"),
        ("evaluate", "{folder}/set.pt", "--format", "dc", "--space", "raw"),
        ("run", "--method", "random", "--track", "{run}/record.json"),
        ("run", "--method", "random", "--track", "{folder}/track.toml"),
        ("sweep", "{folder}/track.toml"),
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(words, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run/record.json", "set.safetensors", "set.pt", "track.toml"):
        os.mkfifo(tmp_path / name)
    call = [word.format(run=tmp_path / "run", folder=tmp_path) for word in words]
    assert within(60, lambda: main(call)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert (
        "is a pipe, not a regular file" in last or "no track file" in last or "is no file" in last
    )


def test_a_report_does_not_wait_for_pipes_in_a_run(tmp_path) -> None:
    shutil.copytree(example("random").folder, tmp_path / "run")
    for name in ("metrics.jsonl", "run.log", "distilled.png"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / "run" / name)
    out = tmp_path / "report.html"
    assert within(60, lambda: main(["report", str(tmp_path / "run"), "--out", str(out)])) == 0
    assert "metrics.jsonl is a pipe" in out.read_text(encoding="utf-8")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl").series == ()


def test_sockets_and_devices_are_no_files(tmp_path, monkeypatch) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        # The name of a socket may have no more than a hundred characters.
        monkeypatch.chdir(tmp_path)
        found.bind("s")
        for path, kind in ((Path("s"), "a socket"), (Path("/dev/zero"), "a device")):
            with pytest.raises(UsageError, match=f"is {kind}, not a regular file"):
                require_regular(path)
    require_regular(tmp_path)
    require_regular(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"")
    require_regular(tmp_path / "file")


def test_texts_may_begin_with_a_byte_order_mark(tmp_path) -> None:
    track = tmp_path / "Track.TOML"
    track.write_bytes(codecs.BOM_UTF8 + TRACK.read_bytes())
    assert load_track(str(track), registry()).name == "fast"
    sweep = tmp_path / "sweep.toml"
    sweep.write_bytes(codecs.BOM_UTF8 + b'methods = ["random"]\ntracks = ["Track.TOML"]\n')
    assert read_sweep_file(sweep).methods == ("random",)
    assert main(["sweep", str(sweep), "--dry-run", "--out", str(tmp_path / "runs")]) == 0
    order = tmp_path / "order.txt"
    order.write_bytes(codecs.BOM_UTF8 + b"b\na\n")
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        shutil.copy(example("random").folder / "distilled.png", tmp_path / "set" / name / "0.png")
    found = READERS["folder"](tmp_path / "set", choose("folder", classes=str(order)))
    assert found.labels.tolist() == [0, 1]


class Tee:
    """What some tools put in place of a stream: it writes, and knows nothing else."""

    def __init__(self, stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@pytest.mark.parametrize(
    "words",
    [
        ["list", "methods"],
        ["show", "track", "digits-ipc1"],
        ["table", str(ROOT / "leaderboard" / "results" / "digits-ipc10" / "mat")],
        ["run", "--method", "random", "--dry-run"],
    ],
)
def test_streams_that_only_write_are_no_error(words, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", Tee(sys.stdout))
    monkeypatch.setattr(sys, "stderr", Tee(sys.stderr))
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", [["run", "--method", "random", "--track"], ["sweep"]])
def test_toml_that_is_nested_too_deeply_is_one_line(words, tmp_path, capsys) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(f"a = {'[' * 5000}{']' * 5000}")
    assert main([*words, str(path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {path}: not valid TOML: maximum recursion depth exceeded"


def test_json_that_is_nested_too_deeply_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "record.json").write_text("[" * 100_000 + "]" * 100_000)
    assert main(["table", str(tmp_path)]) == 2
    assert "is not readable JSON: maximum recursion" in capsys.readouterr().err
    with pytest.raises(RecursionError):
        json.loads("[" * 100_000)


# --- variables -------------------------------------------------------------------------------


def test_variables_set_the_defaults_of_out_data_and_device(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTDD_OUT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ROBUSTDD_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("ROBUSTDD_DEVICE", "cpu")
    call = ["run", "--method", "random", "--track", str(TRACK), "--dry-run", "--json"]
    assert main(call) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["folder"].startswith(str(tmp_path / "elsewhere"))
    assert plan["device"] == "cpu"
    assert main([*call, "--out", str(tmp_path / "here")]) == 0
    assert json.loads(capsys.readouterr().out)["folder"].startswith(str(tmp_path / "here"))
    assert main(["run", "--method", "random", "--track", "cifar10-ipc1"]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    monkeypatch.setenv("ROBUSTDD_DEVICE", "tpu")
    assert main(call) == 2
    assert "tpu" in capsys.readouterr().err.splitlines()[-1]


def test_the_doctor_shows_the_variables(capsys, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTDD_OUT", "somewhere")
    main(["doctor", "--json"])
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "ROBUSTDD_OUT=somewhere" in checks["variables"]["detail"]


def test_python_takes_the_same_defaults() -> None:
    code = "from robustdd_bench import entrance as e; print(e.OUT, e.DATA)"
    env = os.environ | {"ROBUSTDD_OUT": "o", "ROBUSTDD_DATA": "d"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["o", "d"]

"""`robustdd sweep` as a user calls it, and what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from commands import interrupted
from rich.console import Console
from small_runs import TRACK, copy_of, example, plan_of, registry
from streams import Terminal
from sweeps import MTT, held, planned, statuses, swept, write

from robustdd_bench.cli.main import main
from robustdd_bench.cli.shared.session import Session
from robustdd_bench.sweeps.displays import LiveDisplay, PlainDisplay, make_sweep_display
from robustdd_bench.sweeps.run import Outcome

EXAMPLE = Path(__file__).parents[1] / "examples" / "sweeps" / "digits-seeds.toml"
TWO = 'name = "two"\nmethods = ["random", "raising"]\nseeds = [0, 1]\n'


@pytest.fixture
def robustdd(monkeypatch, capsys):
    """Calls the program with the tests' methods; the exit code, stdout and stderr."""
    monkeypatch.setattr(Session, "registry", registry())

    def call(*args):
        # The runs that lie in `out` already were planned in Python, where "off" is the default.
        code = main(["sweep", *map(str, args), "--compile", "off"])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def out(tmp_path):
    """An output folder that holds two runs of method random."""
    for seed in (0, 1):
        copy_of(example("random", seed=seed) if seed else example("random"), tmp_path / "out")
    return tmp_path / "out"


# --- what it prints ----------------------------------------------------------------------------


def test_the_table_is_data_a_run_is_a_line_of_progress_and_a_failure_is_exit_1(
    robustdd, out, tmp_path
):
    code, stdout, stderr = robustdd(write(tmp_path, TWO), "--out", out)
    assert code == 1
    assert "\x1b" not in stdout + stderr
    title, headings, random, raising = stdout.splitlines()
    assert title == (
        "fast@1: accuracy in %, mean ± std over seeds (of one seed: over students); "
        "Linf eps, * headline"
    )
    assert headings.split("  ")[0] == "method"
    means = [example("random").record.aggregates, example("random", seed=1).record.aggregates]
    clean = sum(found.clean.mean for found in means) / 2
    assert re.split(r"\s{2,}", random)[:3] == ["random", "20", "2/2"]
    assert re.split(r"\s{2,}", random)[3].startswith(f"{100 * clean:.1f} ± ")
    assert re.split(r"\s{2,}", raising) == ["raising", "0/2", "-", "-", "-"]
    lines = stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "1/4 done before",
        "2/4 done before",
        "3/4 failed",
        "4/4 failed",
        "error",
    ]
    assert "random on fast, seed 1: clean " in lines[1]
    assert lines[2].endswith("ZeroDivisionError: two lines of reasons")
    assert lines[4].startswith("error: 2 of 4 runs failed: raising on fast, seed 0: ")


def test_json_holds_every_run_and_every_group(robustdd, out, tmp_path):
    code, stdout, _ = robustdd(write(tmp_path, TWO), "--out", out, "--json")
    assert code == 1
    found = json.loads(stdout)
    assert (found["sweep"], found["split"]) == ("two", "test")
    assert [run["status"] for run in found["runs"]] == [
        "done before",
        "done before",
        "failed",
        "failed",
    ]
    record = example("random").record
    first, *_, last = found["runs"]
    assert first["run_id"] == record.run_id
    assert first["folder"] == str(out / "fast" / "random" / record.run_id)
    assert first["clean"] == record.aggregates.clean.mean
    assert first["headline"] == record.aggregates.headline.mean
    assert first["command"].startswith("robustdd run --method random")
    assert last["clean"] is None
    assert "two lines of reasons" in last["reason"]
    random, raising = found["groups"]
    assert random["seeds"] == [0, 1]
    assert [row["eps"] for row in random["robust"]] == [0.05, 0.1]
    assert random["clean"]["std_seeds"] is not None
    assert (raising["clean"], raising["robust"], raising["seeds"]) == (None, [], [])


def test_all_done_is_exit_0_and_tracks_have_tables_of_their_own(robustdd, out, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(TRACK.read_text().replace('name = "fast"', 'name = "other"'))
    tracks = f'tracks = ["{TRACK}", "other.toml"]\n'
    path = write(tmp_path, 'methods = "random"\nvalidate = false', tracks=tracks)
    code, stdout, _ = robustdd(path, "--out", out)
    assert code == 0
    assert [line[:7] for line in stdout.splitlines() if "@" in line] == ["fast@1:", "other@1"]


def test_validation_runs_are_marked(robustdd, tmp_path):
    copy_of(example("random", validate=True), tmp_path / "out")
    path = write(tmp_path, 'methods = "random"\nvalidate = true')
    code, stdout, _ = robustdd(path, "--out", tmp_path / "out")
    assert code == 0
    assert stdout.startswith("fast@1, validation split: ")


def test_a_run_of_another_process_is_no_failure(robustdd, out, tmp_path):
    lock = held(plan_of("random").folder(out))
    path = write(tmp_path, 'methods = "random"\nseeds = [0, 1]')
    code, stdout, stderr = robustdd(path, "--out", out, "--no-wait")
    lock.release()
    assert code == 0
    assert stdout.splitlines()[2].split()[:3] == ["random", "20", "1/2"]
    assert "1/2 busy: random on fast, seed 0: another process is at it" in stderr
    assert stderr.endswith("1 run is going on in another process\n")


def test_every_wrong_entry_has_a_line_and_the_call_is_wrong(robustdd, tmp_path):
    path = write(tmp_path, 'methods = ["mat", "mta"]\n[settings.mat]\nepz = 1')
    code, stdout, stderr = robustdd(path, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert stderr.splitlines() == [
        f"{path}: settings.mat: method 'mat': unknown key 'epz'; did you mean 'eps'?",
        f"{path}: methods[1]: unknown method 'mta'; did you mean 'mtt'?",
        f"error: {path}: 2 entries are wrong",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "mat"], "--only 'mat' fits no run of the sweep"),
        (["--board", "x"], "--board is for the estimate of --dry-run"),
        (["--board", "x", "--dry-run"], "nothing is published under x"),
        (["--threads", "-1"], "--threads must lie in"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--executor", "dask"], "unknown executor 'dask'"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(args, message, robustdd, tmp_path):
    code, stdout, stderr = robustdd(write(tmp_path, TWO), "--out", tmp_path / "out", *args)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


# --- the dry run -------------------------------------------------------------------------------


def test_a_dry_run_tells_what_is_there_what_it_may_cost_and_what_it_does_not_know(
    robustdd, out, tmp_path
):
    text = 'name = "dry"\nmethods = ["random", "gambler", "herding"]\nseeds = [0, 2]'
    before = sorted(out.rglob("*"))
    code, stdout, stderr = robustdd(write(tmp_path, text), "--out", out, "--dry-run")
    assert (code, stderr) == (0, "")
    title, _, *rows = stdout.splitlines()
    assert re.fullmatch(
        r"dry: 6 runs, 5 to do; about .+ for 3 of them; 2 with nothing to estimate from", title
    )
    run_id = example("random").record.run_id
    assert re.split(r"\s{2,}", rows[0]) == [run_id, "done", "random", "fast", "0"]
    assert re.split(r"\s{2,}", rows[1])[5:] == [rows[1].split()[-4] + " s", "2 runs"]
    assert rows[2].split()[1:] == ["new", "gambler", "fast", "0", "unknown"]
    assert re.search(r"new +herding +fast +0 .* \d\.\de\+\d\d operations$", rows[4])
    assert sorted(out.rglob("*")) == before


def test_a_failed_run_is_to_be_done_only_if_asked(robustdd, out, tmp_path):
    swept(planned(tmp_path, TWO), out)
    path = write(tmp_path, TWO)
    for options, todo in (([], 0), (["--retry-failed"], 2)):
        _, stdout, _ = robustdd(path, "--out", out, "--dry-run", "--json", *options)
        found = json.loads(stdout)
        assert [run["found"] for run in found["runs"]] == ["done", "done", "failed", "failed"]
        assert (found["todo"], found["estimated"], found["estimate_s"]) == (todo, 0, 0)


def test_the_example_is_right_and_the_published_board_tells_what_it_may_cost(robustdd, tmp_path):
    board = EXAMPLE.parents[2] / "leaderboard"
    args = ("--only", "random/digits-ipc1", "--board", board, "--out", tmp_path / "out")
    code, stdout, _ = robustdd(EXAMPLE, *args, "--device", "cpu", "--dry-run", "--json")
    found = json.loads(stdout)
    assert (code, found["split"], found["todo"]) == (0, "validation", 3)
    assert [run["estimate"]["records"] for run in found["runs"]] == [3, 3, 3]
    assert all("split" in run["estimate"]["differs"] for run in found["runs"])
    code, stdout, _ = robustdd(EXAMPLE, "--out", tmp_path / "out", "--dry-run", "--json")
    methods = [run["method"] for run in json.loads(stdout)["runs"]]
    assert (len(methods), methods.count("mat"), methods.count("mtt")) == (42, 12, 6)


# --- displays ----------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path):
    text = 'methods = "random"\nseeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n'
    many = '[[runs]]\nmethod = "mat"\nset = { eps = 0.05, attack_steps = 5, ema = 0.9 }\n'
    one = '[[runs]]\nmethod = "mat"\nseeds = [0]\nset = { eps = 0.1, attack_steps = 6, ema = 0.5 }'
    return planned(tmp_path, text + many + one)


def screen(display):
    """What is drawn now, as lines without escape codes and blank lines."""
    width, height = display._console.size
    paper = Console(file=io.StringIO(), width=width, height=height)
    paper.print(display._drawn())
    lines = [line.rstrip() for line in paper.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return [line for line in lines if line]


def test_a_live_table_shows_the_rows_around_the_running_run_and_in_the_end_all(sweep, tmp_path):
    stream = Terminal()
    display = LiveDisplay(sweep, tmp_path, stream, width=80, height=16)
    folder = tmp_path / "run"
    with display.opened():
        display.show(10, Outcome(sweep.runs[10], folder, "running"))
        run = display.reporter(folder)
        with run, run.stage("attacks", 6, 3), run.progress("fgsm", 2) as bar:
            bar.advance()
            lines = screen(display)
        rows = [line.split() for line in lines if line.split()[0] in ("waiting", "running")]
        assert len(rows) == 8
        assert [row[3] for row in rows] == ["6", "7", "8", "9", "0", "1", "2", "3"]
        assert rows[4][0] == "running"
        assert lines[-1] == "attacks 3/6, fgsm 1/2"
        assert lines[0] == "sweep: 0 of 21 runs have ended"
        done = Outcome(sweep.runs[10], folder, "done", example("random").record)
        display.show(10, done)
        display.show(11, Outcome(sweep.runs[11], folder, "failed", reason="why"))
        lines = screen(display)
        assert lines[0] == "sweep: 2 of 21 runs have ended, 1 failed"
        clean = example("random").record.aggregates.clean
        assert f"{100 * clean.mean:.1f} ± {100 * clean.std:.1f}" in "\n".join(lines)
        display.waiting(2)
        assert screen(display)[-1] == "waiting for 2 runs of other processes"
    lines = screen(display)
    assert sum(line.split()[0] in ("waiting", "done", "failed") for line in lines) == 21
    assert "\x1b[?25h" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_whole_sweep_is_shown_and_its_events_reach_the_loggers(
    stream, out, tmp_path, monkeypatch
):
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    events, shown = [], stream()
    sweep = planned(tmp_path, 'methods = ["random", "half"]')

    def publish(event):
        events.append(event)

    display = make_sweep_display(sweep, out, stream=shown, publish=publish)
    result = swept(sweep, out, display=display, witnesses=True)
    assert statuses(result) == ["done", "failed"]  # done, for the want of witnesses
    assert (result.outcomes[0].folder / "witnesses.safetensors").is_file()
    stages = {event["stage"] for event in events if event["event"] == "stage"}
    assert stages == {"attacks", "experts"}
    ends = [event["event"] for event in events if event["event"] in ("run", "end")]
    assert ends == ["run", "end", "run", "end"]
    lines = [line.split() for line in shown.getvalue().splitlines()]
    if stream is Terminal:
        assert ["sweep:", "2", "of", "2", "runs", "have", "ended,", "1", "failed"] in [
            re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", " ".join(line)).split() for line in lines
        ]
    else:
        assert [line[:2] for line in lines] == [["1/2", "done:"], ["2/2", "failed:"]]


def test_an_interrupted_table_says_which_run_was_cut(sweep, tmp_path):
    display = LiveDisplay(sweep, tmp_path, Terminal(), width=100, height=40)
    with contextlib.suppress(KeyboardInterrupt), display.opened():
        display.show(0, Outcome(sweep.runs[0], tmp_path, "running"))
        raise KeyboardInterrupt
    assert sum(line.split()[0] == "interrupted" for line in screen(display)) == 1


def test_texts_of_strangers_cannot_steer_the_terminal(sweep, tmp_path):
    plain, live = io.StringIO(), Terminal()
    wicked = replace(sweep, name="\x1b[2Jname\n")
    reason = "\x1b[31mred\nnew line"
    for display in (
        PlainDisplay(wicked, plain),
        LiveDisplay(wicked, tmp_path, live, width=80, height=30),
    ):
        with display.opened():
            display.show(0, Outcome(sweep.runs[0], tmp_path, "failed", reason=reason))
    assert plain.getvalue() == "1/21 failed: random on fast, seed 0: [31mred new line\n"
    assert "\x1b[2J" not in live.getvalue()
    assert "[2Jname" in live.getvalue()


def test_the_display_fits_the_stream(sweep, tmp_path, monkeypatch):
    monkeypatch.delenv("TERM", raising=False)
    assert isinstance(make_sweep_display(sweep, tmp_path, stream=Terminal()), LiveDisplay)
    assert isinstance(make_sweep_display(sweep, tmp_path, stream=io.StringIO()), PlainDisplay)


# --- an interruption ---------------------------------------------------------------------------


def test_ctrl_c_is_exit_130_with_one_line_and_the_same_call_again_ends_the_sweep(
    robustdd, tmp_path
):
    path = write(tmp_path, f'methods = ["random", "mtt"]\n{MTT}'.replace("iterations=3", ""))
    path.write_text(path.read_text() + "iterations=40\n")
    args = [str(path), "--device", "cpu", "--compile", "off", "--out", str(tmp_path / "out")]
    cut = interrupted(tmp_path, "sweep", *args)
    assert (cut.returncode, cut.stdout) == (130, "")
    loading, first, last = cut.stderr.splitlines()
    assert loading == f"robustdd sweep: {path}; loading torch"
    assert first.startswith("1/2 done: random on fast, seed 0: clean ")
    assert last.startswith("1 of 2 runs are done; interrupted; kept in ")
    assert last.endswith("a checkpoint of the distillation. Repeat the command to resume.")
    exit_code, _, stderr = robustdd(*args)
    assert exit_code == 0, stderr
    assert [line.partition(":")[0] for line in stderr.splitlines()] == [
        "1/2 done before",
        "2/2 done",
    ]

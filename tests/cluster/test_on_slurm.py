"""SLURM itself, on this machine: jobs are cancelled, nodes go down, limits are reached."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import INTERRUPTIBLE
from engines import arguments, assert_same_runs, folders, sweep_file
from slurm_daemons import Daemons, missing
from small_runs import SETTINGS, TRACK

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM: {missing()}"),
]
ROOT = Path(__file__).parents[2]
SLURM = ["--executor", "slurm", "--executor-set"]
PATIENCE_S = 240


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    daemons = Daemons(tmp_path_factory.mktemp("slurm"))
    with daemons:
        yield daemons
    until = time.monotonic() + 60
    while daemons.left() and time.monotonic() < until:
        time.sleep(0.1)
    assert daemons.left() == [], "processes of SLURM or of its jobs are left"


class Call:
    """`robustdd ARGS`, going on, on the cluster; what it said is in `said`."""

    def __init__(self, slurm, folder, *args, terminal=False):
        self.path = folder / f"{time.monotonic_ns()}.txt"
        self._file = self.path.open("wb")
        self._terminal = None
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._file, "stderr": self._file}
        if terminal:
            self._terminal, inner = pty.openpty()
            streams = {"stdin": inner, "stdout": self._file, "stderr": inner}
        bin_ = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *args],
            env={**os.environ, **slurm.environ, "PATH": bin_},
            start_new_session=True,
            **streams,
        )
        if terminal:
            os.close(inner)

    @property
    def said(self):
        while self._terminal is not None and select.select([self._terminal], [], [], 0)[0]:
            try:
                self._file.write(os.read(self._terminal, 65536))
            except OSError:
                break
        self._file.flush()
        return self.path.read_text(errors="replace")

    def until(self, what, true):
        end = time.monotonic() + PATIENCE_S
        while not true():
            said = self.said[-2000:]  # a terminal that nobody reads stops who writes to it
            assert self.process.poll() is None, said
            assert time.monotonic() < end, f"{what}: {said}"
            time.sleep(0.1)

    def close(self):
        self._file.close()
        if self._terminal is not None:
            os.close(self._terminal)

    def answer(self, text):
        os.write(self._terminal, text.encode())

    def ends(self):
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, self.said
            _ = self.said
            time.sleep(0.1)
        return self.process.returncode


@contextmanager
def called(*args, **options):
    call = Call(*args, **options)
    try:
        yield call
        assert call.said
    finally:
        call.process.kill()
        call.process.wait()
        call.close()


def workers(out):
    """What the workers of a folder show of themselves."""
    found = []
    for path in (out / "queue" / "workers").glob("[!.]*.json"):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def log_of_runs(out):
    return "".join(path.read_text() for path in out.glob("*/*/*/run.log"))


def test_a_sweep_is_the_same_though_a_job_is_cancelled_and_a_node_goes_down(
    slurm, local_sweep, tmp_path
) -> None:
    out = tmp_path / "out"
    words = [*arguments(sweep_file(tmp_path), out), *SLURM, "max_workers=2"]
    with called(
        slurm,
        tmp_path,
        *words,
        "--executor-set",
        "partition=main",
        "--executor-set",
        "time=00:10:00",
    ) as call:

        def at_work():
            return {one["job"] for one in workers(out) if one["state"] == "computes"}

        call.until("both jobs work", lambda: len(at_work()) == 2)
        assert set(slurm.jobs().values()) == {"RUNNING"}
        first, second = sorted(slurm.jobs())
        slurm.ask("scancel", first)
        call.until("it is told", lambda: f"job {first} was cancelled" in call.said)
        call.until("the other one works", lambda: at_work() == {second})
        node = slurm.ask("squeue", "--noheader", f"--jobs={second}", "--format=%N")
        slurm.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        assert call.ends() == 0
        slurm.ask("scontrol", "update", f"nodename={node}", "state=resume")
        said = call.said
    assert log_of_runs(out).count("computed again") == 2
    assert len(folders(out)) == 8
    assert_same_runs(out, local_sweep)
    assert len(re.findall(r"submitted: \d+", said)) == 1, "one array, and nothing in its place"
    slurm.until_idle()


LONG = {**dict(text.split("=", 1) for text in SETTINGS["mat"]), "iterations": "3000"}


def test_jobs_outlive_the_call_are_found_again_requeued_before_their_limit_and_cancelled(
    slurm, tmp_path
) -> None:
    out = tmp_path / "out"
    words = ["run", "--method", "mat", "--track", str(TRACK), "--device", "cpu", "--threads", "1"]
    words += [word for key, value in LONG.items() for word in ("--set", f"{key}={value}")]
    words += ["--compile", "off", "--out", str(out), *SLURM, "max_workers=1"]
    # SLURM looks every 30 s, and sends the signal 20 to 50 s after the start.
    words += ["--executor-set", "time=1", "--executor-set", "warning=10"]
    with called(slurm, tmp_path, *words, terminal=True) as call:
        call.until("a checkpoint", lambda: list(out.rglob("matching.safetensors")))
        call.process.send_signal(signal.SIGINT)
        call.until("the question", lambda: "[Y/n]" in call.said)
        jobs = slurm.jobs()
        call.answer("n\n")
        assert call.ends() == 130
        said = " ".join(call.said.split())
    assert re.search(r"\d+ running on n\d", said)
    assert "Repeat the command to resume." in said
    said = re.sub(r"about [\d.]+ \w+(?: \d+ \w+)? left", "", said)  # of the line for the run
    assert "left" not in said, "what the display does to stderr is not the executor's fault"
    assert slurm.jobs() == jobs
    with called(slurm, tmp_path, *words) as call:
        call.until("the job is found", lambda: "jobs of an earlier call go on" in call.said)
        call.until("the cell is given back", lambda: "it was given back" in log_of_runs(out))
        call.until(
            "the job is requeued",
            lambda: "Restarts=1" in slurm.ask("scontrol", "show", "job", *jobs),
        )
        call.until(
            "it works again", lambda: [one for one in workers(out) if one["state"] == "computes"]
        )
        time.sleep(3)
        call.process.send_signal(signal.SIGINT)
        assert call.ends() == 130
        said = call.said
    assert "submitted" not in said
    assert "1 jobs cancelled" in said
    slurm.until_idle()
    (metrics,) = out.glob("*/*/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows if row["stage"] == "distill/matching"]
    assert len(steps) > 20
    assert steps == list(range(steps[0], steps[0] + len(steps))), "none lost, none twice"


def test_jobs_that_slurm_does_not_take_end_the_call_with_its_words(slurm, tmp_path) -> None:
    words = [*arguments(sweep_file(tmp_path), tmp_path / "out"), *SLURM]
    with called(slurm, tmp_path, *words, "partition=nope") as call:
        assert call.ends() == 2
        last = call.said.splitlines()[-1]
    assert last.startswith("error: sbatch does not take the jobs: ")
    assert "nvalid partition" in last
    assert slurm.jobs() == {}


def test_the_script_of_the_docs_starts_workers_for_any_scheduler(slurm, tmp_path) -> None:
    out = tmp_path / "out"
    script = ROOT / "examples" / "cluster" / "worker.sbatch"
    environ = {**os.environ, **slurm.environ, "ROBUSTDD_WAIT": "30"}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sent = subprocess.run(
        ["sbatch", f"--output={tmp_path}/%A_%a.txt", str(script), str(out)],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Submitted batch job" in sent.stdout
    words = arguments(sweep_file(tmp_path, ("random",), (0,)), out)
    with called(slurm, tmp_path, *words, "--executor", "workers") as call:
        assert call.ends() == 0, call.said
    slurm.until_idle()
    logs = "".join(path.read_text() for path in tmp_path.glob("*_*.txt"))
    assert "the runs have ended" in logs

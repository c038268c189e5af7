"""The executor slurm without SLURM: times, options, how many jobs there are, what is told."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import robustdd
from robustdd_slurm import commands, executor, fleet
from robustdd_slurm.commands import JobState, JobStates, SilentSlurmError, jobs_now
from robustdd_slurm.executor import SlurmExecutor
from robustdd_slurm.fleet import JobFleet
from robustdd_slurm.times import minutes_of
from small_runs import TRACK

from robustdd_bench.config import build_config, parse_assignments
from robustdd_bench.errors import UsageError
from robustdd_bench.executors import ExecutorEndedError
from robustdd_bench.runs.execution.queue.driver import Demand

# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("time=04:00:00", 240),
        ("time=10:30", 11),  # sbatch: minutes and seconds
        ("time=90", 90),
        ("time=1-12", 36 * 60),
        ("time=1-00:30", 24 * 60 + 30),
        ("time=2-01:00:01", 49 * 60 + 1),
    ],
)
def test_a_limit_means_what_it_means_to_sbatch(text, minutes) -> None:
    value = parse_assignments([text])["time"]
    assert minutes_of(value) == minutes
    assert config(text).time == value


@pytest.mark.parametrize("text", ["4h", "", "0", "00:00:00", "1:2:3:4", "-5", "99999999"])
def test_a_limit_that_is_none_is_told_with_an_example(text) -> None:
    with pytest.raises(ValueError, match="time must"):
        minutes_of(text)


def config(*assignments):
    values = parse_assignments(assignments)
    return build_config(SlurmExecutor.Config, values, "executor 'slurm'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time=4h", "time must be minutes, or as in 04:00:00"),
        ("time=1", "time must be longer than warning, which is 90 s"),
        ("max_workers=0", "max_workers must be at least 1"),
        ("on_interrupt=stay", "on_interrupt"),
        ("array=0-3", "array is set by the executor; see max_workers"),
        ("cpus-per-task=3", "cpus-per-task is set by the executor; see cpus_per_worker"),
        ("output=log", "output is set by the executor"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_submitted(text, said) -> None:
    with pytest.raises(UsageError) as caught:
        config(text)
    assert said in str(caught.value)


@pytest.fixture
def commands_there(monkeypatch):
    monkeypatch.setattr(executor, "missing_commands", list)
    monkeypatch.setattr(executor.importlib.util, "find_spec", lambda name: name)


def test_what_sbatch_is_told(commands_there) -> None:
    chosen = SlurmExecutor(
        config(
            "time=04:00:00",
            "partition=gpu",
            "gpus_per_worker=1",
            "cpus_per_worker=6",
            "memory=24G",
            'setup=["module load cuda", "export A=1"]',
            "account=me",
            "mail-type=END",
            "exclusive=true",
            "nice=false",
        )
    )
    assert chosen._parameters() == {
        "job_name": "robustdd",
        "nodes": 1,
        "ntasks_per_node": 1,
        "time": 240,
        "cpus_per_task": 6,
        "srun_args": ["--cpus-per-task=6"],
        "gpus_per_node": 1,
        "mem": "24G",
        "setup": ["module load cuda", "export A=1"],
        "partition": "gpu",
        "account": "me",
        "mail_type": "END",
        "exclusive": True,
    }
    plain = SlurmExecutor(config())
    plain._gpus, plain._threads = 1, 4  # what cells take
    found = plain._parameters()
    assert (found["gpus_per_node"], found["cpus_per_task"]) == (1, 4)


def test_without_slurm_or_submitit_one_line_says_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(executor, "missing_commands", lambda: ["sbatch", "squeue"])
    call = ("run", "--method", "random", "--track", str(TRACK), "--device", "cpu")
    call = (*call, "--out", str(tmp_path), "--executor", "slurm")
    monkeypatch.setattr(executor.importlib.util, "find_spec", lambda name: name)
    done = robustdd(*call)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the executor slurm needs SLURM's commands on the PATH, and sbatch, squeue is not "
        "there; run it on a login node, or see `robustdd worker --help`"
    )
    monkeypatch.setattr(executor.importlib.util, "find_spec", lambda name: None)
    done = robustdd(*call)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "error: the executor slurm needs submitit: pip install 'robustdd-bench[slurm]'"
    assert list(tmp_path.iterdir()) == []


def test_submitit_is_not_imported_before_there_is_something_to_submit() -> None:
    import subprocess

    code = (
        "import sys, robustdd_slurm.executor, robustdd_slurm.fleet; "
        "print([m for m in sys.modules if m.partition('.')[0] == 'submitit'])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- SLURM's commands --------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Puts commands of that name on the PATH: the text of a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name, text):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return write


def test_squeue_is_read_and_jobs_that_it_has_forgotten_are_gone(scripts) -> None:
    scripts(
        "squeue",
        'case "$*" in *--jobs=7,8*) ;; *) exit 3;; esac; '
        "echo '7_0|RUNNING|n1|1:02|None'; echo '7_1|PENDING||0:00|Resources'; "
        "echo '9|RUNNING|n2|0:01|None'",
    )
    found = jobs_now(["7_0", "7_1", "7_2", "8"]).jobs
    assert list(found) == ["7_0", "7_1", "7_2", "8"]
    assert [str(found[one]) for one in found] == [
        "7_0 running on n1, 1:02",
        "7_1 pending (Resources)",
        "7_2 gone",
        "8 gone",
    ]
    assert [found[one].alive for one in found] == [True, True, False, False]
    scripts("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert jobs_now(["7"]).jobs["7"].state == "GONE"
    scripts(
        "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    with pytest.raises(SilentSlurmError, match=r"squeue: .*Unable to contact"):
        jobs_now(["7"])


def test_jobs_are_submitted_as_an_array_and_what_sbatch_says_is_told(scripts, tmp_path) -> None:
    pytest.importorskip("submitit")
    from robustdd_slurm.submission import RefusedSubmissionError, WorkerJob, submit

    for name in ("srun", "squeue", "scancel", "scontrol"):
        scripts(name, "exit 0")
    scripts("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 77')
    job = WorkerJob(["robustdd", "worker"], 90)
    parameters = {"time": 240, "partition": "gpu", "srun_args": ["--cpus-per-task=2"], "nice": 5}
    folder = tmp_path / "slurm"
    assert submit(folder, job, 3, parameters) == ("77_0", "77_1", "77_2")
    text = (tmp_path / "script").read_text()
    for line in ("array=0-2%3", "time=240", "partition=gpu", "nice=5", "requeue", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in text
    assert "--cpus-per-task=2" in next(line for line in text.splitlines() if "srun" in line)
    assert submit(folder, job, 1, parameters) == ("77",)
    scripts(
        "sbatch",
        "echo 'sbatch: error: invalid partition specified: gpu' >&2; "
        "echo 'sbatch: error: Batch job submission failed: Invalid partition' >&2; exit 1",
    )
    with pytest.raises(RefusedSubmissionError) as caught:
        submit(folder, job, 3, parameters)
    assert str(caught.value) == (
        "invalid partition specified: gpu; Batch job submission failed: Invalid partition"
    )


# --- how many jobs there are -------------------------------------------------------------------


class FakeDriver:
    """What a fleet needs of the process that plans."""

    id = "me"

    def __init__(self):
        self.waiting, self.held, self.shown, self.failed = 0, 0, {}, []
        self.event = threading.Event()

    def demand(self):
        return Demand(self.waiting, self.held)

    def workers(self):
        return dict(enumerate(self.shown.values()))

    def fail(self, error):
        self.failed.append(error)
        self.event.set()


class Cluster:
    """SLURM as a fleet sees it."""

    def __init__(self, monkeypatch, tmp_path, most=4):
        self.states, self.submitted, self.said = {}, [], []
        self.driver = FakeDriver()
        monkeypatch.setattr(fleet, "jobs_now", self.now)
        monkeypatch.setattr(fleet, "say", self.said.append)
        monkeypatch.setattr(fleet, "cancel", self.states.__delitem__)
        self.folder = tmp_path / "slurm"
        self.fleet = JobFleet(self.driver, most, self.submit, self.folder)

    def submit(self, count):
        array = f"{len(self.submitted) + 1}"
        self.submitted.append(count)
        ids = [f"{array}_{task}" for task in range(count)]
        self.states.update(dict.fromkeys(ids, "PENDING"))
        return ids

    def now(self, ids):
        asked = time.monotonic()
        return JobStates(
            asked,
            {one: JobState(one, self.states.get(one, "GONE"), reason="Resources") for one in ids},
        )

    def needs(self, waiting, held):
        self.fleet._supply(waiting, held)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    return Cluster(monkeypatch, tmp_path)


def test_there_are_as_many_jobs_as_cells_and_never_more_than_allowed(cluster) -> None:
    cluster.needs(2, 0)
    cluster.needs(2, 0)
    assert cluster.submitted == [2], "those that are submitted will take the cells"
    cluster.needs(3, 2)
    assert cluster.submitted == [2, 2], "four at most"
    cluster.needs(50, 4)
    assert cluster.submitted == [2, 2]
    cluster.states["1_0"] = "COMPLETED"
    time.sleep(0.01)
    cluster.fleet._snapshot = cluster.now(cluster.fleet._known)
    cluster.needs(50, 3)
    assert cluster.submitted == [2, 2, 1], "one that has ended is replaced"


def test_the_next_call_finds_the_jobs_and_submits_no_second_array(
    cluster, monkeypatch, tmp_path
) -> None:
    cluster.needs(3, 0)
    cluster.states |= {"1_0": "RUNNING", "1_1": "COMPLETED"}
    again = Cluster(monkeypatch, tmp_path)
    again.states = cluster.states
    again.fleet.start()
    again.fleet.stop()
    assert [job.id for job in again.fleet.alive()] == ["1_0", "1_2"]
    assert again.said == [
        "SLURM: 2 jobs of an earlier call go on: 1_0 running, 1_2 pending (Resources)"
    ]
    again.needs(2, 0)
    assert again.submitted == []
    cluster.states.clear()
    third = Cluster(monkeypatch, tmp_path)
    third.fleet.start()
    third.fleet.stop()
    assert third.fleet.alive() == []
    assert list((tmp_path / "slurm" / "jobs").iterdir()) == [], "SLURM has forgotten them"


def test_a_job_that_is_cancelled_is_not_replaced(cluster) -> None:
    cluster.needs(4, 0)
    cluster.driver.shown = {one: {"job": one, "refused": {}} for one in cluster.states}
    time.sleep(0.01)
    cluster.states["1_3"] = "CANCELLED"
    cluster.fleet._ask()
    cluster.needs(9, 3)
    assert cluster.submitted == [4]
    assert "SLURM: job 1_3 was cancelled; it is not replaced" in cluster.said
    cluster.states |= dict.fromkeys(("1_0", "1_1", "1_2"), "CANCELLED")
    cluster.fleet._ask()
    with pytest.raises(ExecutorEndedError, match="all jobs were cancelled; the same command"):
        cluster.needs(9, 0)


@pytest.mark.parametrize("why", ["log", "refused"])
def test_jobs_that_end_without_asking_for_cells_end_the_call_with_their_words(cluster, why) -> None:
    cluster.needs(2, 0)
    cluster.fleet._folder.mkdir(exist_ok=True)
    if why == "log":
        log = "bash: module: command not found\nNo module named robustdd_bench\n"
        (cluster.folder / "1_1_0_log.err").write_text(log)
    else:
        refused = {"me": "planned with torch 1; the worker has torch 2"}
        cluster.driver.shown = {one: {"job": one, "refused": refused} for one in cluster.states}
    time.sleep(0.01)
    cluster.states["1_0"] = "FAILED"
    cluster.fleet._ask()
    cluster.states["1_1"] = "FAILED"
    with pytest.raises(ExecutorEndedError) as caught:
        cluster.fleet._ask()
    assert caught.value.exit_code == 2
    said = str(caught.value)
    assert "jobs end without asking for cells (1_1: failed): " in said
    end = {"log": "No module named robustdd_bench", "refused": "the worker has torch 2"}[why]
    assert said.endswith(end)


def test_jobs_that_wait_for_long_are_told_with_slurms_reason(cluster, monkeypatch) -> None:
    cluster.needs(2, 0)
    time.sleep(0.01)
    cluster.fleet._ask()
    assert not [text for text in cluster.said if "wait" in text]
    monkeypatch.setattr(fleet, "PENDING_S", 0.0)
    cluster.fleet._ask()
    assert cluster.said[-1] == "SLURM: 2 of 2 jobs wait for a node: Resources"


def test_a_lease_is_dead_when_its_job_is_and_not_by_an_older_look(cluster) -> None:
    cluster.needs(2, 0)
    holder = {"job": "1_0"}
    cluster.states["1_0"] = "RUNNING"
    cluster.fleet._snapshot = cluster.now(cluster.fleet._known)
    seen = time.monotonic()
    assert cluster.fleet.gone(holder, seen) == ""
    cluster.states["1_0"] = "NODE_FAIL"
    time.sleep(0.01)
    cluster.fleet._snapshot = cluster.now(cluster.fleet._known)
    assert cluster.fleet.gone(holder, seen) == "its job is node_fail"
    assert cluster.fleet.gone(holder, time.monotonic()) == "", "it beat after SLURM was asked"
    cluster.states["1_0"] = "PENDING"
    time.sleep(0.01)
    cluster.fleet._snapshot = cluster.now(cluster.fleet._known)
    assert cluster.fleet.gone(holder, seen) == "its job is pending", "requeued"
    assert cluster.fleet.gone({"job": "99"}, seen) == "", "another scheduler's"
    assert cluster.fleet.gone({"job": ""}, seen) == ""


def test_the_thread_submits_and_tells_what_went_wrong(cluster, monkeypatch) -> None:
    monkeypatch.setattr(fleet, "LOOK_S", 0.01)
    cluster.driver.waiting = 3

    def refuse(count):
        raise ExecutorEndedError("sbatch does not take the jobs: no such account", 2)

    cluster.fleet._submit = refuse
    cluster.fleet.start()
    assert cluster.driver.event.wait(10)
    cluster.fleet.stop()
    (error,) = cluster.driver.failed
    assert (error.exit_code, str(error)) == (2, "sbatch does not take the jobs: no such account")


# --- Ctrl-C ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "terminal", "error", "answer", "kept"),
    [
        ("ask", True, KeyboardInterrupt(), "n\n", True),
        ("ask", True, KeyboardInterrupt(), "\n", False),
        ("ask", True, KeyboardInterrupt(), "y\n", False),
        ("ask", False, KeyboardInterrupt(), "n\n", False),
        ("ask", True, RuntimeError(), "n\n", False),
        ("keep", False, KeyboardInterrupt(), "", True),
        ("cancel", True, KeyboardInterrupt(), "n\n", False),
        ("keep", True, ExecutorEndedError("gone"), "", False),
    ],
)
def test_ctrl_c_asks_on_a_terminal_alone(
    choice, terminal, error, answer, kept, commands_there, monkeypatch
) -> None:
    monkeypatch.setattr(executor, "is_terminal", lambda stream: terminal)
    monkeypatch.setattr(executor, "_answer", lambda: answer)
    chosen = SlurmExecutor(config(f"on_interrupt={choice}"))
    assert chosen._keeps(error, [JobState("1_0", "RUNNING", "n1")]) is kept


def test_commands_that_are_missing_are_named(monkeypatch) -> None:
    monkeypatch.setattr(commands, "shutil", SimpleNamespace(which=lambda name: None))
    assert commands.missing_commands() == ["sbatch", "srun", "squeue", "scancel", "scontrol"]


def test_the_script_of_the_docs_is_a_shell_script() -> None:
    import subprocess

    script = Path(__file__).parents[1] / "examples" / "cluster" / "worker.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0

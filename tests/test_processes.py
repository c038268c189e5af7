"""Cells in processes: the same record, whatever is killed, and what workers tell is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import INTERRUPTIBLE
from small_runs import SETTINGS, TRACK, files, without_costs
from small_runs import registry as registry_with_crooks

from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import Cell, Job, LocalExecutor, Resources
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.records.plan import make_plan
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution import link, processes
from robustdd_bench.runs.execution.fingerprint import fingerprint, refuse_other
from robustdd_bench.runs.execution.processes import ProcessExecutor, jobs_for, visible_gpus
from robustdd_bench.runs.execution.worker import Worker
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.planned import message_of
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.sweeps.plan import plan_sweep
from robustdd_bench.sweeps.run import run_sweep


@cache
def registry():
    """What a process of its own finds installed."""
    return collect(get_plugin_manager())


def plan_of(method="mat", *settings, **options):
    values = dict(text.split("=", 1) for text in (*SETTINGS.get(method, ()), *settings))
    return make_plan(
        registry(),
        method=method,
        track=str(TRACK),
        device="cpu",
        assignments=[f"{key}={value}" for key, value in values.items()],
        **options,
    )


def run(plan, out, executor=None, reporter=NullReporter, found=None):
    return execute(
        plan,
        registry() if found is None else found,
        LocalExecutor() if executor is None else executor,
        out=Path(out),
        data_root=Path("data"),
        reporter=reporter,
    )


def jobs(count):
    return ProcessExecutor(ProcessExecutor.Config(jobs=count))


def rows_of(finished):
    return sorted((finished.folder / "metrics.jsonl").read_text().splitlines())


class Heard:
    """What loggers of plugins are told, as JSON values."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        known = {k: v for k, v in event.items() if k not in ("wall_s", "folder", "done")}
        if "picture" in known:
            known["picture"] = known["picture"].tolist()
        self.events.append(json.dumps(known, sort_keys=True))

    def reporter(self, folder):
        return NullReporter(folder, publish=self)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    heard = Heard()
    finished = run(plan_of(), tmp_path_factory.mktemp("local"), reporter=heard.reporter)
    return finished, heard


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_processes_makes_the_record_of_one(count, local, tmp_path) -> None:
    heard, (one, heard_of_one) = Heard(), local
    finished = run(plan_of(), tmp_path, jobs(count), heard.reporter)
    assert without_costs(finished.record) == without_costs(one.record)
    assert finished.record.results_sha256 == one.record.results_sha256
    ours, theirs = files(finished.folder), files(one.folder)
    assert ours.keys() == theirs.keys()
    costly = ("record.json", "plan.json", "run.log", ".cell.json", "metrics.jsonl")
    for name in [name for name in ours if not name.endswith(costly)]:
        assert ours[name].read_bytes() == theirs[name].read_bytes(), name
    # Cells end in another order, so values come in another one.
    assert rows_of(finished) == rows_of(one)
    assert sorted(heard.events) == sorted(heard_of_one.events)
    kinds = [
        {p.process.model_copy(update={"commit": None}) for p in record.costs.processes}
        for record in (finished.record, one.record)
    ]
    assert kinds[0] == kinds[1], "the machine, torch and processor of the workers"


# --- kills -----------------------------------------------------------------------------------


class Killing(NullReporter):
    """Kills the process that computes the distillation, the first few times it begins."""

    times = 1
    executor: ProcessExecutor

    def take(self, cell, event):
        super().take(cell, event)
        if cell == "distill" and event["event"] == "bar" and Killing.times > 0:
            Killing.times -= 1
            (busy,) = [one for one in Killing.executor._processes if one.busy]
            os.kill(busy._process.pid, signal.SIGKILL)


def test_a_cell_whose_process_was_killed_is_computed_again(local, tmp_path) -> None:
    Killing.times, Killing.executor = 1, jobs(2)
    finished = run(plan_of(), tmp_path, Killing.executor, Killing)
    one, _ = local
    assert without_costs(finished.record) == without_costs(one.record)
    log = (finished.folder / "run.log").read_text()
    assert log.count("distill: its worker was lost, it is computed again") == 1
    assert "SIGKILL" in log
    assert rows_of(finished) == rows_of(one)


@pytest.mark.parametrize("said", ["", '{"event": {"eve', '{"event": 1}\\n{"rec'])
def test_a_process_that_is_killed_in_the_middle_of_a_line_says_what_killed_it(
    said, monkeypatch
) -> None:
    dies = (
        f"import os, sys; sys.stdout.write('{said}'); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    monkeypatch.setattr(link, "START", dies.replace("{", "{{").replace("}", "}}"))
    cell = Cell(stage="distill", name="distill", output=Path("set"))
    job = Job(run_id="0", message={}, events=lambda *_: None, run_here=lambda _: None)
    process = link.WorkerProcess()
    with pytest.raises(link.LostWorkerError, match="its process ended: SIGKILL"):
        process.compute(cell, job)
    process.end(0.0)
    process.close()


def test_a_cell_that_kills_every_process_ends_the_run(tmp_path) -> None:
    Killing.times, Killing.executor = 99, jobs(1)
    plan = plan_of()
    with pytest.raises(RunFailedError, match=r"distill: its worker was lost 3 times: .*SIGKILL"):
        run(plan, tmp_path, Killing.executor, Killing)
    record = read_record(plan.folder(tmp_path) / "record.json")
    assert (record.status, record.failure.cell) == ("failed", "distill")


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LONG = ("iterations=120",)


def started(out):
    """A run in processes of its own, in the middle of its distillation; its workers."""
    words = ["run", "--method", "mat", "--track", str(TRACK), "--device", "cpu", "--jobs", "2"]
    words += ["--compile", "off", "--out", str(out)]
    settings = dict(text.split("=", 1) for text in (*SETTINGS["mat"], *LONG))
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not list(Path(out).rglob("matching.safetensors")):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    workers = [
        pid
        for pid in children(driver.pid)
        if b"execution.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert 1 <= len(workers) <= 2
    return driver, workers


def gone(workers):
    until = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a worker outlives its run"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    return run(plan_of("mat", *LONG), tmp_path_factory.mktemp("long"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("what", ["the driver", "driver and workers", "Ctrl-C", "SIGTERM"])
def test_a_run_that_was_ended_resumes_to_the_record_it_would_have_had(
    what, long_run, tmp_path
) -> None:
    driver, workers = started(tmp_path)
    if what == "driver and workers":
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    kills = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
    driver.send_signal(kills.get(what, signal.SIGKILL))
    _, said = driver.communicate(timeout=60)
    gone(workers)
    if what in kills:
        assert driver.returncode == {"Ctrl-C": 130, "SIGTERM": 143}[what]
        last = said.splitlines()[-1]
        assert last.startswith("interrupted; kept in ")
        assert last.endswith(
            "experts 2/2, a checkpoint of the distillation. Repeat the command to resume."
        )
    finished = run(plan_of("mat", *LONG), tmp_path)
    assert without_costs(finished.record) == without_costs(long_run.record)


# --- what differs, what fails ------------------------------------------------------------------


def test_a_worker_that_is_installed_otherwise_refuses_with_both_lists(tmp_path) -> None:
    context = RunContext(plan_of("random"), registry(), tmp_path, Path("data"))
    message = message_of(context)
    assert json.loads(json.dumps(message)) == message
    other = message | {"fingerprint": message["fingerprint"] | {"torch": "9.9", "plugin x": "x 1"}}
    with pytest.raises(RunFailedError) as caught:
        Worker(other, registry())
    here, text = message["fingerprint"]["torch"], str(caught.value)
    assert "planned with plugin x x 1, torch 9.9; " in text
    assert f"the worker has plugin x absent, torch {here}" in text
    Worker(message, registry()).run("distill", lambda event: None)
    assert context.set_path.is_file()


def test_the_fingerprint_follows_the_files_of_plugins_and_harness(tmp_path, monkeypatch) -> None:
    before = fingerprint(registry())
    assert {"python", "torch", "cuda", "robustdd-bench", "plugin mat"} <= before.keys()
    refuse_other(before, before)
    package = tmp_path / "robustdd_mat"
    package.mkdir()
    (package / "__init__.py").write_text("# another file")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "robustdd_mat", raising=False)
    after = fingerprint(registry())
    assert [what for what in before if before[what] != after[what]] == ["plugin mat"]


def test_a_failure_in_a_process_is_that_of_one_here_and_is_not_tried_again(tmp_path) -> None:
    plan = plan_of("mtt", "expert_lr=1e30")
    told = []
    for name, executor in (("here", None), ("there", jobs(1))):
        with pytest.raises(RunFailedError) as caught:
            run(plan, tmp_path / name, executor)
        record = read_record(plan.folder(tmp_path / name) / "record.json")
        told.append((str(caught.value), record.failure))
    assert told[0] == told[1]
    assert "diverged" in told[0][0]
    log = (plan.folder(tmp_path / "there") / "run.log").read_text()
    assert "computed again" not in log
    assert "in _train" in log, "the trace of the worker"


def test_a_plugin_that_workers_lack_is_told_once(tmp_path) -> None:
    with pytest.raises(RunFailedError, match="plugin crooks absent"):
        run(plan_of("random"), tmp_path, jobs(1), found=registry_with_crooks())


def test_the_runs_of_a_sweep_share_the_processes_and_one_that_fails_stops_no_other(
    local, tmp_path
) -> None:
    settings = "\n".join(SETTINGS["mat"])
    (tmp_path / "sweep.toml").write_text(
        f'tracks = "{TRACK}"\nmethods = ["mat"]\nseeds = [0, 1]\n[settings.mat]\n{settings}\n'
        f'[[runs]]\nmethod = "mtt"\nset = {{ {", ".join(SETTINGS["mtt"])}, expert_lr = 1e30 }}\n'
        "seeds = [0]\n"
    )
    sweep = plan_sweep(tmp_path / "sweep.toml", registry(), device="cpu")
    out = tmp_path / "out"
    result = run_sweep(sweep, registry(), jobs(2), out=out, data_root=Path("data"))
    assert [one.status for one in result.outcomes] == ["done", "done", "failed"]
    assert "diverged" in result.outcomes[2].reason
    assert without_costs(result.outcomes[0].record) == without_costs(local[0].record)


def test_what_a_process_tells_and_cannot_be_kept_ends_its_run(tmp_path) -> None:
    class Full(NullReporter):
        def take(self, cell, event):
            if cell == "students/1":
                raise RunFailedError("cannot write metrics.jsonl: No space left on device")
            super().take(cell, event)

    plan = plan_of("random")
    with pytest.raises(RunFailedError, match="No space left on device"):
        run(plan, tmp_path, jobs(2), Full)
    failure = read_record(plan.folder(tmp_path) / "record.json").failure
    assert (failure.stage, failure.cell) == ("students", "students/1")


# --- how many, and on which devices ------------------------------------------------------------


def test_there_are_as_many_jobs_as_cores_gpus_or_memory_allow(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(processes, "_available_bytes", lambda: 2**40)
    assert [jobs_for(threads) for threads in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    assert jobs_for(1, ["0", "1", "2"]) == 3
    monkeypatch.setattr(processes, "_available_bytes", lambda: 3 * 2**30 + 5)
    assert jobs_for(1) == 3
    monkeypatch.setattr(processes, "_available_bytes", lambda: 5)
    assert jobs_for(1) == 1


def test_processes_take_the_visible_devices_in_turn(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc,7")
    assert visible_gpus() == ["4", "GPU-abc", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1", "2"]
    given = []

    class Fake:
        def __init__(self, gpu, path):
            given.append(gpu)
            self.busy = False

        def compute(self, cell, job):
            time.sleep(0.2)

        def end(self, until):
            return

        def close(self):
            return

    monkeypatch.setattr(processes, "WorkerProcess", Fake)
    cell = Cell(stage="students", name="students/0", output=Path("x"), resources=Resources(gpus=1))
    config = ProcessExecutor.Config(jobs=4, gpus="5,6,7")
    with ProcessExecutor(config) as executor:
        for future in [executor.submit(cell, None) for _ in range(4)]:
            future.result()
    assert sorted(given) == ["5", "5", "6", "7"]


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="no process groups here")
def test_a_worker_has_a_process_group_of_its_own_and_the_session_of_the_call() -> None:
    # Ctrl-C goes to the group in front; `nice` holds for a session where Linux groups by it.
    process = link.WorkerProcess(path=sys.path)
    try:
        assert os.getpgid(process.pid) != os.getpgid(0)
        assert os.getsid(process.pid) == os.getsid(0)
    finally:
        process.end(0.0)
        process.close()

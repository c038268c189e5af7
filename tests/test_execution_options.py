"""`--jobs`, `--executor`, `--executor-set`, `--device cuda:N`: what they mean; what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from commands import robustdd
from small_runs import TRACK, registry

from robustdd_bench.cli.shared.execution import chosen_executor
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.records.means import resolve_device
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.execution import processes
from robustdd_bench.runs.execution.processes import ProcessExecutor, executor_for


@pytest.fixture
def gpus(monkeypatch):
    """Three CUDA devices; the number of the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return current


def chosen(device="cpu", **options):
    words = {"executor": None, "jobs": "auto", "executor_assignments": (), "device": device}
    session = SimpleNamespace(registry=registry())
    kind = device.partition(":")[0]
    return chosen_executor(session, words | options, device=kind, threads=1)


def test_one_job_is_this_process_and_several_are_processes(monkeypatch) -> None:
    assert type(chosen(jobs="1")) is LocalExecutor
    several = chosen(jobs="3")
    assert (type(several), several.config) == (ProcessExecutor, ProcessExecutor.Config(jobs=3))
    monkeypatch.setattr(processes, "jobs_for", lambda threads, gpus: 5)
    assert chosen().config.jobs == 5
    assert type(chosen(executor="local", jobs="auto")) is LocalExecutor
    one = chosen(executor="processes", jobs="1")
    assert (type(one), one.config.jobs) == (ProcessExecutor, 1)
    asked = chosen(executor="processes", executor_assignments=("jobs=7", 'gpus="1,2"'))
    assert asked.config == ProcessExecutor.Config(jobs=7, gpus="1,2")


def test_the_variable_is_the_default_where_nothing_is_said(monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTDD_JOBS", "4")
    assert executor_for(None, device="cpu", threads=1).config.jobs == 4
    assert type(executor_for(1, device="cpu", threads=1)) is LocalExecutor
    monkeypatch.setenv("ROBUSTDD_JOBS", "many")
    with pytest.raises(UsageError, match=r"jobs must be auto or lie in .*, not 'many'"):
        executor_for(None, device="cpu", threads=1)


def test_a_process_for_each_gpu_or_for_the_one_that_is_named(gpus) -> None:
    assert chosen("cuda").config == ProcessExecutor.Config(jobs=3, gpus="0,1,2")
    assert type(chosen("cuda:1")) is LocalExecutor
    assert chosen("cuda:2", jobs="2").config == ProcessExecutor.Config(jobs=2, gpus="2")


def test_a_device_by_number_makes_the_run_of_cuda(gpus) -> None:
    plans = [
        make_plan(registry(), method="random", track=str(TRACK), device=device, threads=1)
        for device in ("cuda", "cuda:2")
    ]
    assert gpus == [2], "torch's current device"
    assert plans[0].run_id() == plans[1].run_id()
    assert plans[1].device == "cuda"
    with pytest.raises(UsageError, match="--device cuda:3: there are 3 CUDA devices, counted from"):
        resolve_device("cuda:3")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--jobs", "0"], "jobs must be auto or lie in 1..1024, not '0'"),
        (["--jobs", "two"], "jobs must be auto or lie in 1..1024, not 'two'"),
        (["--executor", "local", "--jobs", "2"], "--jobs 2 is of the executor processes"),
        (["--executor-set", "jobs=2"], "--executor-set needs --executor"),
        (["--executor", "processes", "--executor-set", "job=2"], "unknown key 'job'"),
        (["--executor", "local", "--executor-set", "jobs=2"], "unknown key 'jobs'"),
        (["--device", "cuda:x"], "unknown device 'cuda:x'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--time-limit", "0"], "the time limit must be above 0"),
        (["--time-limit", "nan"], "not nan"),
        (["--time-limit", "inf"], "at most 31622400 seconds (a year), not inf"),
        (["--time-limit", "1e300"], "at most 31622400 seconds (a year), not 1e+300"),
    ],
)
def test_what_cannot_be_is_one_line(words, line, tmp_path) -> None:
    call = ("run", "--method", "random", "--track", str(TRACK), "--out", str(tmp_path), *words)
    done = robustdd(*call)
    assert done.returncode == 2, done.stderr
    assert line in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_executor_that_is_none_is_named(monkeypatch) -> None:
    entry = registry().get("executors", "local")

    class Odd:
        Config = LocalExecutor.Config

        def __new__(cls, config):
            return 3

    monkeypatch.setattr(type(entry), "load", lambda self: Odd)
    with pytest.raises(PluginError, match="it is a int, not an Executor"):
        chosen(executor="local")

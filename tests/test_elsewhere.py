"""Runs for GPUs that are planned where there is none, because other machines compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import press_ctrl_c, robustdd
from engines import sweep_file
from small_runs import TRACK, plan_of, registry

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.executors import Executor, Receipt
from robustdd_bench.records.means import resolve_compile, resolve_device
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.worker import Worker
from robustdd_bench.runs.operations import seconds_of_cells
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.planned import message_of
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.runs.work import run_cell
from robustdd_bench.sweeps.plan import plan_sweep

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


class Posting(Executor):
    """Takes every cell, and computes none."""

    slots, elsewhere = 64, True

    def __init__(self):
        super().__init__()
        self.jobs, self.cells = [], []

    def submit(self, cell, job):
        self.cells.append(cell)
        self.jobs.append(job)
        press_ctrl_c()


def test_a_device_may_be_elsewhere_if_it_has_no_number() -> None:
    assert resolve_device("cuda", elsewhere=True) == "cuda"
    assert resolve_device("auto", elsewhere=True) == "cpu"
    assert resolve_compile("auto", "cuda", elsewhere=True)
    assert not resolve_compile("off", "cuda", elsewhere=True)
    with pytest.raises(UsageError, match="no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(UsageError, match="--device cuda:1 is a device of this machine"):
        resolve_device("cuda:1", elsewhere=True)


@pytest.mark.parametrize("method", ["mat", "random"])
def test_its_cells_ask_for_gpus_and_are_those_that_a_gpu_would_compute(method, tmp_path) -> None:
    plan, executor = plan_of(method, device="cuda", elsewhere=True), Posting()
    with pytest.raises(KeyboardInterrupt):
        execute(
            plan,
            registry(),
            executor,
            out=tmp_path,
            data_root=Path("data"),
            reporter=NullReporter,
        )
    (cell,) = executor.cells
    assert cell.resources.gpus == 1
    message = executor.jobs[0].message
    assert message["plan"]["device"] == "cuda"
    assert message["plan"] == plan.to_dict()
    context = RunContext(plan, registry(), tmp_path, Path("data"))
    assert context.task.device == torch.device("cuda"), "experts are stored by their device"
    assert context.groups("pgd") == [(0, 1)], "students are attacked together on a GPU"
    with pytest.raises(RunFailedError, match="needs a CUDA device, and this process has none"):
        run_cell(context, cell, NullReporter())


@pytest.mark.parametrize("method", ["mat", "dm", "random"])
def test_how_long_it_takes_on_gpus_of_others_is_not_known(method, tmp_path) -> None:
    plan = plan_of(method, device="cuda", elsewhere=True)
    assert seconds_of_cells(plan, registry()) == {}
    words = ["--track", str(TRACK), "--device", "cuda", "--executor", "workers"]
    done = robustdd("run", "--method", method, *words, "--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "unknown" in next(line for line in done.stdout.splitlines() if line.startswith("time"))


def test_a_sweep_is_planned_for_gpus_elsewhere(tmp_path) -> None:
    path = sweep_file(tmp_path, ["dm"], [0])
    with pytest.raises(UsageError, match="no CUDA device"):
        plan_sweep(path, registry(), device="cuda")
    (run,) = plan_sweep(path, registry(), device="cuda", elsewhere=True).runs
    assert run.plan.device == "cuda"


def test_the_command_line_asks_the_executor_where_it_computes(tmp_path) -> None:
    words = ["run", "--method", "random", "--track", str(TRACK), "--device", "cuda", "--dry-run"]
    here = robustdd(*words, "--out", str(tmp_path))
    assert (here.returncode, "no CUDA device" in here.stderr) == (2, True)
    there = robustdd(*words, "--out", str(tmp_path), "--executor", "workers", "--json")
    assert there.returncode == 0, there.stderr
    assert '"device": "cuda"' in there.stdout


@pytest.mark.parametrize("kernels", [True, False])
def test_a_worker_follows_the_process_that_planned_in_its_kernels(
    kernels, tmp_path, monkeypatch
) -> None:
    plan = plan_of("random", compile="on")
    context = RunContext(plan, registry(), tmp_path, Path("data"))
    message = message_of(context) | {"kernels": kernels}
    worker = Worker(message, registry())
    assert worker._context.compile is kernels
    assert isinstance(worker.run("distill", lambda event: None), Receipt)
    monkeypatch.setattr(RunContext, "missing_kernels", "no compiler")
    if kernels:
        with pytest.raises(RunFailedError, match=r"cannot be had on .* \(no compiler\)"):
            Worker(message, registry())
    else:
        assert not Worker(message, registry())._context.compile

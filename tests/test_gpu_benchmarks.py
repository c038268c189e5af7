"""The GPU's benchmarks, rehearsed on the CPU: every variant runs, the file says what it must."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import registry

from robustdd_bench.sweeps.plan import plan_sweep

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
RESULTS = FOLDER.parent / "results" / "gpu"


def rehearse(script: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / f"{script}.py", "--tiny", "--device", "cpu"]
    return subprocess.run(
        [*command, "--out", out, *options],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    try:
        import bench

        yield bench
    finally:
        sys.path.remove(str(FOLDER))


def read(bench, path: Path):
    return bench.Result.model_validate_json(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    """The file that the engine's rehearsal leaves."""
    out = tmp_path_factory.mktemp("engine")
    done = rehearse("engine", out)
    assert done.returncode == 0, done.stderr
    return out / "engine.json"


def test_every_form_of_the_engine_finds_the_gradient_of_float64(bench, engine) -> None:
    result = read(bench, engine)
    assert result.tiny
    found = {one.variant: one for one in result.measurements}
    assert set(found) >= {"unrolled, group norm", "adjoint", "captured", "reverse over forward"}
    for one in found.values():
        assert one.error is None
        assert one.values["image_gradient_error"] < 1e-5
        assert one.values["alpha_gradient_error"] < 1e-5
    # Two gradients of a step forward, and their graph once more for the products.
    assert found["adjoint"].operations > 0


def test_students_are_attacked_to_the_same_accuracy_either_way(bench, tmp_path) -> None:
    done = rehearse("students", tmp_path)
    assert done.returncode == 0, done.stderr
    result = read(bench, tmp_path / "students.json")
    losses = [one.values["final_loss"] for one in result.measurements[:2]]
    assert losses[0] == losses[1]
    attacks: dict[str, set[float]] = {}
    for one in result.measurements[2:]:
        assert one.error is None
        attacks.setdefault(one.workload, set()).add(one.values["robust_accuracy"])
    assert len(attacks) == 2
    assert all(len(found) == 1 for found in attacks.values())


@pytest.mark.slow
def test_every_way_of_training_an_expert_runs(bench, tmp_path) -> None:
    done = rehearse("experts", tmp_path)
    assert done.returncode == 0, done.stderr
    result = read(bench, tmp_path / "experts.json")
    assert [one.variant for one in result.measurements if one.error] == []
    natural = {one.variant: one for one in result.measurements if one.workload == "natural"}
    trained = {name: one.values.get("train_accuracy") for name, one in natural.items()}
    assert trained["resident"] == trained["captured"]
    assert natural["vmap of 2"].items == 2 * natural["resident"].items
    # The adversary's ten steps and the training step, counted.
    pgd = next(one for one in result.measurements if one.workload == "pgd")
    assert 5 < pgd.operations / natural["resident"].operations < 12


@pytest.mark.slow
def test_a_step_is_told_kernel_by_kernel_beside_its_floors_and_compiled(tmp_path) -> None:
    done = rehearse("kernels", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    assert told["failed"] == {}
    steps = {name: one for name, one in told["steps"].items() if not name.endswith("compiled")}
    assert {name.split(",")[0] for name in steps} == {"training", "adversary", "matching"}
    for name, one in steps.items():
        assert one["ms"] > one["floor_operations_ms"] > 0 < one["floor_bytes_ms"]
        assert any("convolution" in row["name"] for row in one["longest"])
        assert 0.3 < sum(row["share"] for row in one["longest"]) <= 1.0
        assert told["steps"][f"{name}, compiled"]["difference"] < 1e-4


FUSED = """
import torch
from torch import nn
from robustdd_bench.toolkit.fast import triton_kernels
from robustdd_bench.toolkit.fast import blocks
from robustdd_bench.toolkit.fast.blocks import NormBlock

def kernels(device):
    used.append(device)
    return triton_kernels.call

blocks.kernels = kernels
for relu, pooled, shape in [(True, True, (8, 4)), (True, False, (5, 3)), (False, False, (4, 4))]:
    used = []
    norm = nn.GroupNorm(3, 3).double()
    torch.manual_seed(0)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    block = NormBlock(norm, relu=relu, pooled=pooled)

    def everything(f):
        torch.manual_seed(1)
        x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
        y = f(x)
        e = torch.randn_like(y).requires_grad_()
        inputs = (x, norm.weight, norm.bias)
        first = torch.autograd.grad(y, inputs, e, create_graph=True)
        cotangents = [torch.randn_like(one) for one in first]
        second = torch.autograd.grad(
            first, (*inputs, e), cotangents, allow_unused=True, materialize_grads=True
        )
        return y, *first, *second

    exact = everything(block.formula)
    found = everything(block)
    assert len(used) == 3
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    print(relu, pooled, len(found))
"""


def test_the_fused_candidate_is_the_naive_form_up_to_its_second_derivative(monkeypatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when triton is imported
    done = subprocess.run(
        [sys.executable, "-c", FUSED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True 8", "True False 8", "False False 8"]


def test_what_there_is_no_time_for_is_listed(bench, tmp_path) -> None:
    done = rehearse("engine", tmp_path, "--budget", "0")
    assert done.returncode == 0, done.stderr
    result = read(bench, tmp_path / "engine.json")
    assert result.measurements == []
    assert "tiny, N=2: adjoint" in result.left_out
    assert json.loads(done.stdout)["left_out"] == result.left_out


def test_a_form_that_fails_is_named_and_costs_the_others_nothing(bench, tmp_path, capsys) -> None:
    options = bench.parse("A script.", ["--out", str(tmp_path), "--tiny", "--device", "cpu"])
    made = bench.Bench("engine", options)

    def refuse():
        raise RuntimeError("no double backward")

    made.measure("work", "refused", refuse, items=1, unit="steps")
    made.measure("work", "done", lambda: {"value": 1.0}, items=1, unit="steps")
    made.summary()
    told = json.loads(capsys.readouterr().out)["failed"]
    assert told == {"work: refused": "RuntimeError: no double backward"}
    refused, done = read(bench, tmp_path / "engine.json").measurements
    assert (refused.median_s, refused.error) == (None, told["work: refused"])
    assert (done.values, done.error) == ({"value": 1.0}, None)
    with pytest.raises(KeyError):  # what no kernel can be blamed for is a fault of the script
        made.measure("work", "wrong", lambda: {}["nothing"], items=1, unit="steps")


def test_without_a_gpu_only_a_rehearsal_is_allowed(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "engine.py", "--device", "cpu", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "only --tiny makes sense" in done.stderr


def test_committed_results_are_measurements_and_no_rehearsals(bench) -> None:
    for path in RESULTS.glob("*.json"):
        script = path.stem.partition("-")[0]
        kind = importlib.import_module("kernels").Kernels if script == "kernels" else bench.Result
        result = kind.model_validate_json(path.read_text(encoding="utf-8"))
        assert (result.script, result.tiny, result.device) == (script, False, "cuda")


def test_a_ratio_that_does_not_follow_is_refused(bench, engine) -> None:
    text = json.loads(engine.read_text())
    text["ratios"]["tiny, N=2"]["captured"] = 9.0
    with pytest.raises(ValueError, match="ratios do not follow"):
        bench.Result.model_validate(text)


SWEEPS = {
    "mat_search": {"cifar10-ipc10"},
    "minutes": {"cifar10-ipc10", "cifar10-ipc5"},
    "board": {"cifar10-ipc10", "cifar10-ipc10-at"},
    "board-cifar10": {"cifar10-ipc1", "cifar10-ipc5", "cifar10-ipc50"},
    "board-cifar100": {"cifar100-ipc1", "cifar100-ipc10"},
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_its_sweeps_are_runs_that_can_be_planned(path) -> None:
    sweep = plan_sweep(path, registry(), device="cpu", threads=1)
    assert {run.plan.track.name for run in sweep.runs} == SWEEPS[path.stem]
    # The search never sees the test split, and the rows are made on nothing else.
    assert sweep.split == ("validation" if path.stem == "mat_search" else "test")
    if path.stem.startswith("board"):
        methods = {run.plan.method for run in sweep.runs}
        assert methods > {"random", "full", "mtt", "mat"}


def test_the_board_has_both_ends_of_the_full_data() -> None:
    sweep = plan_sweep(FOLDER / "board.toml", registry(), device="cpu", threads=1, only=["full"])
    natural, adversarial = (run.plan.track for run in sweep.runs)
    assert natural.students.adversarial is None
    assert adversarial.students.adversarial.flavour == "pgd"
    assert (natural.threat, natural.attacks) == (adversarial.threat, adversarial.attacks)

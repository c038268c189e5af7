"""Runs with compiled kernels: the same protocol, other bits, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import press_ctrl_c, robustdd
from small_runs import TRACK, example, plan_of, registry, run, with_means_of, without_costs
from tasks import InterruptedRunError, RecordingReporter, digits_task
from test_students import small_set, spec_of, train
from test_unroll import relative

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.robustness import attack_students, fast_copy
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.worker import Worker
from robustdd_bench.runs.planned import message_of
from robustdd_bench.toolkit.fast import blocks
from robustdd_bench.toolkit.fast import compile as compile_module
from robustdd_bench.toolkit.fast.capture import Availability
from robustdd_bench.toolkit.fast.compile import availability
from robustdd_bench.toolkit.random_networks import RedrawnNetwork
from robustdd_bench.toolkit.trajectories.experts import (
    ExpertRecipe,
    ExpertStore,
    family_seeds,
    train_expert,
)

CPU = torch.device("cpu")


@pytest.fixture
def compiler():
    if not availability(CPU).active:
        pytest.skip(availability(CPU).reason)


@pytest.fixture
def none(monkeypatch):
    """A machine without a compiler."""
    found = Availability(False, "no C++ compiler is found")
    monkeypatch.setattr(compile_module, "availability", lambda device: found)
    monkeypatch.setattr("robustdd_bench.runs.context.availability", lambda device: found)


def wrong_kernels(monkeypatch):
    """Kernels whose derivatives are half as large again."""
    real = blocks.kernels(torch.device("cpu"))

    def wrong(name, tensors, *numbers):
        real(name, tensors, *numbers)
        if name == "backward":
            tensors[6].mul_(1.5)

    monkeypatch.setattr(blocks, "kernels", lambda *_: wrong)


# The plan.


def test_it_is_part_of_the_plan_and_not_of_what_is_measured(compiler):
    eager, fast = plan_of("mat"), plan_of("mat", compile="on")
    assert (eager.compile, fast.compile) == (False, True)
    assert "compile" not in eager.to_dict()
    assert eager.run_id() != fast.run_id()
    assert eager.identity() == fast.identity()
    assert with_means_of(fast, eager) == eager
    assert fast.further() == {"compile": True}
    assert "--threads 1 --compile on" in fast.command()
    assert "--compile off" in eager.command()
    assert plan_of("mat", compile="auto") == fast


def test_without_a_compiler_auto_is_off_and_on_is_refused(none):
    assert not plan_of("mat", compile="auto").compile
    with pytest.raises(UsageError, match="--compile on: no C\\+\\+ compiler is found; or --comp"):
        plan_of("mat", compile="on")
    with pytest.raises(UsageError, match="compile"):
        plan_of("mat", compile="of")


def test_the_command_line_says_that_it_runs_without_and_why(none, tmp_path: Path):
    words = ("run", "--method", "random", "--track", str(TRACK), "--out", str(tmp_path))
    done = robustdd(*words, "--json")
    assert done.returncode == 0
    assert "steps run eagerly: no C++ compiler is found" in done.stderr
    assert "--compile off" in json.loads(done.stdout)["command"]
    done = robustdd(*words, "--compile", "on")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "--compile on: no C++ compiler" in done.stderr
    done = robustdd(*words, "--compile", "of")
    assert done.returncode == 2
    assert "did you mean" in done.stderr


# Runs.


@pytest.fixture(scope="module")
def finished():
    if not availability(CPU).active:
        pytest.skip(availability(CPU).reason)
    return example("mat", compile="on")


def test_a_compiled_run_is_repeatable_bit_for_bit(finished, tmp_path):
    again = run(plan_of("mat", compile="on"), tmp_path)
    assert again.record.results_sha256 == finished.record.results_sha256
    assert without_costs(again.record) == without_costs(finished.record)
    assert again.record.further == {"compile": True}
    plan = read_record(again.folder / "record.json").plan()
    assert plan.compile
    assert plan.run_id() == plan_of("mat", compile="on").run_id()


def test_its_figures_are_near_those_of_the_eager_run(finished):
    eager = example("mat").record.aggregates
    ours = finished.record.aggregates
    assert abs(ours.clean.mean - eager.clean.mean) < 0.1
    assert finished.record.results_sha256 != example("mat").record.results_sha256


class Stopping(LocalExecutor):
    def __init__(self, after):
        self.left = after

    def submit(self, cell, job):
        if self.left == 0:
            press_ctrl_c()
        self.left -= 1
        return super().submit(cell, job)


@pytest.mark.parametrize("after", [1, 2, 3, 6])
def test_an_interrupted_compiled_run_ends_in_the_same_record(finished, after, tmp_path):
    plan = plan_of("mat", compile="on")
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, executor=Stopping(after))
    again = run(plan, tmp_path)
    assert again.record.results_sha256 == finished.record.results_sha256


def test_a_plan_for_kernels_that_are_not_there_runs_eagerly_and_says_so(
    compiler, monkeypatch, tmp_path
):
    plan = plan_of("mat", compile="on")
    found = Availability(False, "the C++ compiler 'g++' fails: tired")
    monkeypatch.setattr("robustdd_bench.runs.context.availability", lambda device: found)
    done = run(plan, tmp_path)
    log = (done.folder / "run.log").read_text()
    assert log.count("steps run eagerly: the C++ compiler 'g++' fails: tired") == 1
    eager = example("mat").record
    assert done.record.distilled.sha256 == eager.distilled.sha256
    assert [s.sha256 for s in done.record.students] == [s.sha256 for s in eager.students]


# What they compute.


@pytest.mark.parametrize("flavour", ["natural", "pgd", "fast", "trades", "mart"])
def test_experts_follow_the_eager_trajectory_and_are_stored_apart(compiler, flavour, tmp_path):
    recipe = ExpertRecipe(
        epochs=1, learning_rate=0.05, batch_size=64, flavour=flavour, eps=0.1, attack_steps=2,
        attack_step_size=0.05,
    )  # fmt: skip
    eager = digits_task(tmp_path)
    fast = dataclasses.replace(eager, compile=True)
    reporter, ends = RecordingReporter(), []
    for task in (eager, fast):
        made = train_expert(task, recipe, family_seeds(task.seeds), 0, reporter)
        ends.append(made.snapshots[-1] - made.snapshots[0])
    assert not torch.equal(*ends)
    assert float((ends[1] - ends[0]).norm() / ends[0].norm()) < 0.05
    assert reporter.notes == []
    keys = [ExpertStore(task, recipe).key for task in (eager, fast)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_student_follows_the_eager_one(compiler, adversarial, monkeypatch):
    reporter = RecordingReporter()
    options = {"adversarial": {"eps": 0.05, "steps": 2}} if adversarial else {}
    spec = StudentSpec(**(spec_of(weight_decay=1e-3, epochs=3).model_dump() | options))
    monkeypatch.setattr("test_students.RecordingReporter", lambda: reporter)
    eager = train(small_set(), spec)
    fast = train(small_set(), spec, compile=True)
    assert reporter.notes == []
    assert type(fast.network[1][1]) is type(eager.network[1][1])
    assert fast.sha256() != eager.sha256()
    for ours, theirs in zip(fast.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert all(not p.requires_grad for p in fast.network.parameters())


@pytest.mark.parametrize("what", ["expert", "student", "network drawn anew", "attacked copy"])
def test_wrong_kernels_are_told_and_not_used(compiler, what, monkeypatch, tmp_path):
    wrong_kernels(monkeypatch)
    reporter = RecordingReporter()
    task = digits_task(tmp_path)
    fast = dataclasses.replace(task, compile=True)
    if what == "expert":
        recipe = ExpertRecipe(epochs=1, learning_rate=0.05, batch_size=64)
        seeds = family_seeds(task.seeds)
        one, other = (train_expert(t, recipe, seeds, 0, reporter) for t in (task, fast))
        assert torch.equal(one.snapshots, other.snapshots)
    elif what == "student":
        monkeypatch.setattr("test_students.RecordingReporter", lambda: reporter)
        one, other = (train(small_set(), spec_of(), compile=c) for c in (False, True))
        assert one.sha256() == other.sha256()
    elif what == "network drawn anew":
        body = RedrawnNetwork(fast, 0, order=2, note=reporter.note).body
        assert not any(isinstance(m, blocks.NormBlock) for m in body.modules())
    else:
        network = task.network(0).eval()
        assert fast_copy(network, task.pixels(), reporter.note) is network
    assert len(reporter.notes) == 1
    assert reporter.notes[0].startswith("compiled kernels are not used: tensor")


def test_attacks_hold_compiled_copies_and_torch_judges(compiler, tmp_path):
    from robustdd_attacks.pgd import PGD

    seen = []

    class Watching(PGD):
        def perturb(self, task):
            seen.append(sum(isinstance(m, blocks.NormBlock) for m in task.model.modules()))
            return super().perturb(task)

    task = digits_task(tmp_path)
    network = task.network(0).eval()
    images, labels = task.pixels()[:40], task.labels[:40]
    everything = torch.ones(40, dtype=torch.bool)
    found = [
        attack_students(
            [network], images, labels, Watching(PGD.Config(steps=3)), ThreatModel("Linf", 0.05),
            [0], 16, [everything], compile=compile, note=pytest.fail,
        )[0]
        for compile in (False, True)
    ]  # fmt: skip
    assert seen == [0] * 3 + [sum(isinstance(m, torch.nn.GroupNorm) for m in network.modules())] * 3
    assert found[0].forwards == found[1].forwards > 0
    assert int((found[0].robust != found[1].robust).sum()) <= 2
    assert not any(isinstance(m, blocks.NormBlock) for m in network.modules())


@pytest.mark.parametrize("method", ["dc", "dsa", "dm", "mtt"])
def test_other_methods_run_compiled(compiler, method, tmp_path, monkeypatch):
    real, called = blocks.kernels(torch.device("cpu")), set()
    monkeypatch.setattr(blocks, "kernels", lambda *_: lambda n, *a: called.add(n) or real(n, *a))
    fast, eager = run(plan_of(method, compile="on"), tmp_path), example(method)
    assert called == {"forward", "backward"} | ({"second"} if method != "dm" else set())
    sets = [_images(done.folder) for done in (fast, eager)]
    assert float((sets[0] - sets[1]).norm() / sets[1].norm()) < 0.02
    assert "compiled kernels are not used" not in (fast.folder / "run.log").read_text()


def _images(folder):
    from robustdd_bench.distillers import DistilledSet

    return DistilledSet.load(folder / "distilled.safetensors").images


def test_a_killed_matching_resumes_bit_for_bit(compiler, tmp_path):
    from robustdd_mtt.distiller import MTT
    from tasks import SMALL

    sets = []
    for interrupt in (None, 3):
        task = dataclasses.replace(
            digits_task(tmp_path / str(interrupt)), compile=True, store_dir=tmp_path / "store"
        )
        task.work_dir.mkdir(parents=True, exist_ok=True)
        distiller = MTT(MTT.Config(**SMALL, checkpoint_seconds=0.0))
        for part in distiller.parts(task):
            if not part.output.exists():
                distiller.make_part(part, task, RecordingReporter())
        if interrupt is not None:
            with pytest.raises(InterruptedRunError):
                distiller.distill(task, RecordingReporter(interrupt_at=interrupt))
        sets.append(distiller.distill(task, RecordingReporter()))
    assert torch.equal(sets[0].images, sets[1].images)


def test_a_worker_without_kernels_says_so(monkeypatch, tmp_path):
    found = Availability(False, "no C++ compiler is found")
    monkeypatch.setattr("robustdd_bench.runs.context.availability", lambda device: found)
    plan = dataclasses.replace(plan_of("random"), compile=True)
    context = RunContext(plan, registry(), tmp_path, tmp_path)
    events = []
    worker = Worker(message_of(context), registry())
    for _ in range(2):
        worker.run("distill", events.append)
    assert [event["text"] for event in events if event["event"] == "note"] == [
        "steps run eagerly: no C++ compiler is found"
    ]


def test_compiled_students_are_those_of_the_naive_loop(compiler, tmp_path):
    """The workloads of the benchmarks: a loop of torch's own and the compiled trainer."""
    import sys

    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        from compiled_workloads import students
    finally:
        sys.path.remove(folder)
    loop, fast = students(8)("loop")(), students(8)("compiled")().network
    # Batches are the whole set, so the order changes sums and nothing else.
    for ours, theirs in zip(fast.parameters(), loop.parameters(), strict=True):
        assert relative(ours.detach(), theirs.detach()) < 0.02


class OnceOnly(torch.autograd.Function):
    """The identity, which cannot be differentiated twice."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d):
        return d


class Noisy(torch.nn.Module):
    """Dropout behind something with one derivative."""

    def forward(self, x):
        return torch.nn.functional.dropout(OnceOnly.apply(x), 0.5, self.training)


def noisy_task(tmp_path):
    task = digits_task(tmp_path)

    def network(seed):
        layer, body = task.network(seed)
        return torch.nn.Sequential(layer, torch.nn.Sequential(*body[:-2], Noisy(), *body[-2:]))

    return dataclasses.replace(task, network=network, compile=True)


def test_a_network_with_dropout_and_one_derivative_runs_compiled(compiler, tmp_path):
    notes, task = [], noisy_task(tmp_path)
    before = torch.get_rng_state()
    body = RedrawnNetwork(task, 0, note=notes.append).body
    assert any(isinstance(m, blocks.NormBlock) for m in body.modules())
    assert notes == []
    assert torch.equal(torch.get_rng_state(), before)
    recipe = ExpertRecipe(epochs=1, learning_rate=0.05, batch_size=64)
    reporter = RecordingReporter()
    train_expert(task, recipe, family_seeds(task.seeds), 0, reporter)
    assert reporter.notes == []

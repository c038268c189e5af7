"""The one loop of a distillation: what it tells and saves, and that a killed run ends the same."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from small_runs import example
from tasks import InterruptedRunError, RecordingReporter, digits_task

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError
from robustdd_bench.files import read_safetensors
from robustdd_bench.toolkit.loop import Distillation, iterate
from robustdd_bench.toolkit.snapshots import snapshot_steps

ROOT = Path(__file__).parent.parent
EXPECTED = json.loads((Path(__file__).parent / "data" / "loops.json").read_text())


class Walk(Distillation):
    """Images that take random steps; iteration `breaks` makes `what` NaN."""

    def __init__(self, task, *, breaks=None, what="images"):
        self._task, self._breaks, self._what = task, breaks, what
        self.x, self.labels = task.real_images(1, task.seeds.generator("start"))
        self.speed = torch.zeros_like(self.x)
        self.steps = 0

    def step(self, iteration):
        self.steps += 1
        noise = torch.randn(self.x.shape, generator=self._task.seeds.generator("walk", iteration))
        self.speed = 0.5 * self.speed + noise
        self.x = self.x + 0.01 * self.speed
        loss = self.x.square().mean()
        if iteration == self._breaks:
            if self._what == "images":
                self.x = self.x * torch.nan
            else:
                loss = loss * torch.nan
        return {"loss": loss, "iteration": iteration}

    def state(self):
        return {"images": self.x, "speed": self.speed, "steps": torch.tensor([self.steps])}

    def restore(self, state):
        self.x, self.speed, self.steps = state["images"], state["speed"], int(state["steps"])

    def current(self):
        return DistilledSet(images=self.x, labels=self.labels)


def run(task, reporter=None, *, total=8, key="k", **options):
    walk = options.pop("walk", None) or Walk(task)
    reporter = reporter or RecordingReporter()
    options = {"checkpoint_seconds": 0.0} | options
    made = iterate(walk, task, reporter, title="walk", total=total, key=key, **options)
    return made, walk, reporter


def test_each_iteration_is_told_and_the_set_is_that_of_the_last(tmp_path) -> None:
    made, walk, reporter = run(digits_task(tmp_path))
    assert walk.steps == 8
    assert torch.equal(made.images, walk.x)
    assert reporter.steps == list(range(1, 9))
    assert reporter.values["iteration"] == list(range(8))
    assert sorted(reporter.shown) == sorted(snapshot_steps(8))
    assert torch.equal(reporter.shown[8].images, made.images)
    assert not torch.equal(reporter.shown[0].images, made.images)
    tensors, _ = read_safetensors(tmp_path / "walk.safetensors")
    assert torch.equal(tensors["images"], made.images)


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_a_run_that_is_killed_anywhere_ends_the_same_and_does_nothing_twice(at, tmp_path) -> None:
    expected, _, whole = run(digits_task(tmp_path / "whole"))
    task = digits_task(tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        run(task, RecordingReporter(interrupt_at=at))
    made, walk, rest = run(task)
    assert torch.equal(made.images, expected.images)
    assert walk.steps == 8
    assert rest.steps == list(range(at, 9))
    assert rest.values["loss"] == whole.values["loss"][at - 1 :]
    again, finished, silent = run(task)
    assert torch.equal(again.images, expected.images)
    assert (silent.steps, finished.steps) == ([], 8)


def test_a_checkpoint_of_something_else_is_not_resumed(tmp_path) -> None:
    task = digits_task(tmp_path)
    run(task, key="one")
    _, _, reporter = run(task, key="two")
    assert reporter.steps == list(range(1, 9))


def test_without_iterations_the_set_is_the_one_it_starts_from(tmp_path) -> None:
    task = digits_task(tmp_path)
    made, walk, reporter = run(task, total=0)
    assert torch.equal(made.images, Walk(task).x)
    assert (walk.steps, reporter.steps, list(reporter.shown)) == (0, [], [0])


@pytest.mark.parametrize(
    ("what", "breaks", "told"),
    [
        *[("images", 0, 3), ("images", 2, 3), ("images", 3, 6), ("images", 7, 8)],
        *[("loss", 2, 3), ("loss", 5, 6), ("loss", 7, 8)],
    ],
)
def test_a_state_or_value_that_is_not_finite_ends_the_run_at_the_next_check(
    what, breaks, told, tmp_path
) -> None:
    task = digits_task(tmp_path)
    walk = Walk(task, breaks=breaks, what=what)
    with pytest.raises(RunFailedError, match=f"{what} held NaN or infinity at iteration {told}:"):
        run(task, walk=walk, check_every=3, checkpoint_seconds=3600.0)
    assert not (tmp_path / "walk.safetensors").exists()


@pytest.mark.parametrize("method", EXPECTED)
def test_the_shared_loop_makes_the_sets_that_the_loops_of_their_own_made(method) -> None:
    """Against figures of the last commit with three loops, on the digits after three iterations.

    On the machine where both were run, sets and records were equal bit for bit. Other processors
    round otherwise, hence the tolerance: an iteration more moves a pixel by more than 0.01.
    """
    made = DistilledSet.load(example(method).folder / "distilled.safetensors")
    expected = {name: torch.tensor(values) for name, values in EXPECTED[method].items()}
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(made.images.mean((1, 2, 3)), expected["means"], **close)
    torch.testing.assert_close(made.images[0].flatten()[18:30], expected["first"], **close)


def test_no_method_has_a_loop_of_its_own() -> None:
    own = []
    for folder in ("robustdd_bench", "plugins", "baselines"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            if any(isinstance(n.func, ast.Name) and n.func.id == "Checkpoint" for n in calls):
                own.append(path.relative_to(ROOT).as_posix())
    # The training of a teacher is no distillation: it has epochs, and makes no set.
    expected = ["robustdd_bench/toolkit/loop.py", "robustdd_bench/toolkit/teachers/training.py"]
    assert sorted(own) == expected

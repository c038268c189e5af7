"""Nothing a method receives leads to the images it is judged on, or to what holds them.

`reachable` says what is walked; that it finds such a way is tested on the ways that it knows.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import types
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from reachable import holds_rows, reachable, tensors
from small_runs import TRACK

from robustdd_bench.distillers import DistilledSet, Part, StagedDistiller
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.files import write_text
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.datasets import ImageData, Split
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import PreprocessingSpec, Track, load_track
from robustdd_bench.records.plan import Plan, make_plan
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.folder import RunFolder
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter, PlainReporter, RichReporter

FORBIDDEN = (RunFolder, ImageData, Split, Registry, Plan, Track)


DISPLAYS = {
    "none": NullReporter,
    "lines": lambda folder: PlainReporter(io.StringIO(), folder),
    "bars": lambda folder: RichReporter(io.StringIO(), folder),
}


class Walker(StagedDistiller):
    """Hands all that it gets to `look`, at each of its calls."""

    look: Any = None

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        own: str = "none"

    def parts(self, task):
        type(self).look("parts", self, task)
        return [Part("only", task.work_dir / "only.txt")]

    def make_part(self, part, task, reporter):
        with reporter.progress("part", 1) as bar:
            type(self).look("make_part", self, part, task, reporter, bar)
        write_text(part.output, "done\n")

    def distill(self, task, reporter):
        if self.config.own != "none":
            task = task.behind(Preprocessing(kind=self.config.own))
        network = task.network(0)
        with reporter.progress("distill", 1) as bar:
            reporter.metrics(1, loss=torch.zeros(()))
            type(self).look("distill", self, task, reporter, bar, network)
        images, labels = task.real_images(task.ipc, task.seeds.generator("start"))
        return DistilledSet(images=images, labels=labels, preprocessing=task.preprocessing)


class Plugin:
    @hookimpl
    def robustdd_register_distillers(self, register):
        register("walker", "test_reach:Walker", "of the tests")


@pytest.fixture
def registry():
    return collect(get_plugin_manager([("walkers", Plugin())]))


def _held(registry, plan: Plan) -> Split:
    return RunContext(plan, registry, Path(), Path()).whole_evaluation


@pytest.mark.parametrize(
    ("display", "own", "validate"),
    [  # every two of them together
        ("none", "none", True),
        ("none", "zca", False),
        ("lines", "none", False),
        ("lines", "zca", True),
        ("bars", "none", True),
        ("bars", "zca", False),
    ],
)
def test_no_way_leads_from_what_a_method_gets_to_the_judged_images(
    registry, tmp_path, monkeypatch, validate, own, display
):
    plan = make_plan(
        registry, method="walker", track=str(TRACK), threads=1, device="cpu", validate=validate,
        assignments=[f"own={own}"],
    )  # fmt: skip
    judged = _held(registry, plan)
    rows = judged.images[::7].flatten(1)
    asked: list[str] = []

    def look(what, *got):
        asked.append(what)
        found = list(reachable(*got))
        assert any(type(value).__name__ == "DistillTask" for _, value in found)
        for path, value in found:
            assert not isinstance(value, FORBIDDEN), path
        for path, memory in tensors(found):
            assert not holds_rows(memory, rows), path
            if memory.dtype == torch.int64 and len(memory) == len(judged):
                assert not torch.equal(memory, judged.labels), path

    monkeypatch.setattr(Walker, "look", look)
    finished = execute(
        plan,
        registry,
        LocalExecutor(),
        out=tmp_path,
        data_root=Path("data"),
        reporter=DISPLAYS[display],
    )
    assert finished.record.status == "complete"
    assert {"parts", "make_part", "distill"} == set(asked)


def test_data_whose_splits_share_memory_or_know_each_other_are_taken_apart(registry, tmp_path):
    whole = torch.rand(40, 1, 8, 8)
    labels = torch.arange(10).repeat(4)
    train = Split(whole[:20], labels[:20].clone())
    train.images.test = train.labels.test = whole[20:]  # type: ignore[attr-defined]
    plan = make_plan(registry, method="walker", track=str(TRACK), threads=1, device="cpu")
    context = RunContext(plan, registry, tmp_path, Path())
    context.__dict__["_data"] = ImageData(train, Split(whole[20:], labels[20:]), 10)
    found = list(reachable(context.task))
    for path, memory in tensors(found):
        assert not holds_rows(memory, whole[20:].flatten(1)), path
        assert len(memory) in (20 * 64, 20) or memory.numel() < 600, path


def test_students_share_no_layer_with_what_a_method_or_another_student_holds(registry, tmp_path):
    track = load_track(str(TRACK), registry).model_copy(
        update={"preprocessing": PreprocessingSpec(kind="normalise", mean=(0.3,), std=(0.3,))}
    )
    plan = dataclasses.replace(
        make_plan(registry, method="walker", track=str(TRACK), threads=1, device="cpu"),
        track=track,
    )
    context = RunContext(plan, registry, tmp_path, Path())
    task = context.task
    images, labels = task.real_images(2, task.seeds.generator("start"))
    distilled = DistilledSet(images=images, labels=labels)
    network, student = task.network(0), context.student_network(distilled, 0)
    before = student(images)
    assert torch.equal(before, network(images))
    network[0].mean.fill_(0.9)
    context.student_network(distilled, 1)[0].mean.fill_(0.9)
    assert torch.equal(before, student(images))
    assert torch.equal(before, context.student_network(distilled, 0)(images))


class _Holder:
    __slots__ = ("__weakref__", "held")

    def __init__(self, held):
        self.held = held

    @property
    def way(self):
        return self.held

    def method(self):
        return None


def _ways(target):
    holder = _Holder(target)

    def closure():
        return target

    def default(_held=target):
        return None

    tensor = torch.zeros(2)
    tensor.note = target  # type: ignore[attr-defined]
    module = torch.nn.Linear(1, 1)
    module.register_forward_hook(lambda *_: target)
    return {
        "slot": holder,
        "bound method": holder.method,
        "closure": closure,
        "default": default,
        "partial": functools.partial(print, target),
        "weak reference": (weakref.ref(holder), holder),
        "container": {"a": [({target: 1},)]},
        "namespace": types.SimpleNamespace(a=target),
        "attribute of a tensor": tensor,
        "hook of a module": module,
        "values": {"a": 1, "b": target}.values(),
    }


@pytest.mark.parametrize("way", sorted(_ways(object())))
def test_the_walk_finds_each_way_that_it_says_it_knows(way):
    class Target:
        pass

    target = Target()
    assert any(value is target for _, value in reachable(_ways(target)[way]))


@pytest.mark.parametrize(
    "memory",
    [
        lambda x: x.flatten(),
        lambda x: torch.cat([torch.rand(5), x.flatten(), torch.rand(3)]),
        lambda x: (x.double() * 255).flatten(),
    ],
)
def test_images_are_found_in_a_memory_wherever_they_lie(memory):
    images = torch.rand(3, 1, 4, 4)
    assert holds_rows(memory(images), images[1:2].flatten(1))
    assert not holds_rows(memory(images), torch.rand(2, 16))


def test_a_view_is_looked_at_as_long_as_its_memory():
    whole = torch.rand(10, 4)
    ((_, memory),) = tensors([("view", whole[:5])])
    assert len(memory) == 40


def test_a_method_of_the_bench_would_lead_to_what_is_judged():
    """`task.network_with` was one; the walk finds the split behind it."""
    split = Split(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())

    class Bench:
        def __init__(self):
            self.evaluation = split

        def factory(self):
            return None

    assert any(value is split for _, value in reachable(Bench().factory))

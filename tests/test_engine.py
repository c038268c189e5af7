"""The captured engine, rehearsed: every step finds its inputs in the tensors of the first one."""

import dataclasses

import pytest
import torch
from test_unroll import IMAGES, assert_equal, problem

from robustdd_bench.toolkit.augment import Augmenter
from robustdd_bench.toolkit.dsa import FAMILIES
from robustdd_bench.toolkit.trajectories import engine as engine_module
from robustdd_bench.toolkit.trajectories.engine import AdjointEngine
from robustdd_bench.toolkit.trajectories.unroll import (
    Step,
    adjoint_gradients,
    matching_loss,
    unrolled_gradients,
)

STRATEGY = "_".join(FAMILIES)


@pytest.fixture
def rehearsed(monkeypatch):
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")

    def refuse(*args, **options):
        raise AssertionError("the captured engine was not used")

    monkeypatch.setattr(engine_module, "adjoint_gradients", refuse)


def drawn_steps(strategy="none", batch=None, count=6, seed=11):
    """Student steps as the matching loop draws them; a batch may be smaller than the others."""
    source = torch.Generator().manual_seed(seed)
    augmenter, made = Augmenter(strategy, source), []
    for i in range(count):
        size = IMAGES if batch is None else batch - i % 2
        index = None if batch is None else torch.randperm(IMAGES, generator=source)[:size]
        made.append(Step(index, augmenter.draw(torch.empty(size, 2, 8, 8))))
    return made


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("strategy", ["none", STRATEGY])
def test_rehearsed_steps_equal_full_unrolling_call_after_call(
    rehearsed, momentum, soft, batch, strategy
):
    p = problem(soft)
    engine = AdjointEngine(p.network, momentum=momentum)
    source = torch.Generator().manual_seed(5)
    for call in range(3):
        taken = drawn_steps(strategy, batch, seed=call)
        images = p.images + 0.1 * torch.randn(p.images.shape, generator=source, dtype=torch.float64)
        start = p.start + 0.01 * call
        arguments = (images, p.labels, p.alpha * (1 + call), start, matching_loss(start, p.target))
        exact = unrolled_gradients(p.network, *arguments, taken, momentum=momentum)
        assert_equal(engine.gradients(*arguments, taken), exact)


def test_what_one_call_returned_is_not_changed_by_the_next(rehearsed):
    p = problem(soft=True)
    engine = AdjointEngine(p.network)
    first = engine.gradients(*p.arguments()[1:], drawn_steps())
    kept = {f.name: getattr(first, f.name).clone() for f in dataclasses.fields(first)}
    engine.gradients(*p.arguments()[1:], drawn_steps(STRATEGY, seed=3))
    for name, value in kept.items():
        assert torch.equal(getattr(first, name), value)


def test_another_number_of_images_or_steps_is_captured_anew(rehearsed):
    p = problem()
    engine = AdjointEngine(p.network)
    for images, count in ((6, 3), (4, 3), (4, 5)):
        arguments = (p.images[:images], p.labels[:images], *p.arguments()[3:])
        taken = [Step()] * count
        exact = unrolled_gradients(p.network, *arguments, taken)
        assert_equal(engine.gradients(*arguments, taken), exact)


@pytest.mark.parametrize("keep", [0, 2])
def test_on_the_cpu_it_is_the_plain_adjoint_bit_for_bit(keep):
    p, taken = problem(soft=True), drawn_steps(STRATEGY, 4)
    engine = AdjointEngine(p.network, momentum=0.9, keep=keep)
    found = engine.gradients(*p.arguments()[1:], taken)
    plain = adjoint_gradients(*p.arguments(), taken, momentum=0.9, keep=keep)
    for field in dataclasses.fields(found):
        assert torch.equal(getattr(found, field.name), getattr(plain, field.name))


def test_an_augmentation_that_is_any_function_is_never_captured(monkeypatch):
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")
    p = problem()
    taken = [Step(None, lambda x, i=i: x * (1 + i)) for i in range(3)]
    found = AdjointEngine(p.network).gradients(*p.arguments()[1:], taken)
    assert_equal(found, unrolled_gradients(*p.arguments(), taken))


def test_no_steps_leave_the_start(rehearsed, monkeypatch):
    monkeypatch.setattr(engine_module, "adjoint_gradients", adjoint_gradients)
    p = problem()
    assert torch.equal(AdjointEngine(p.network).gradients(*p.arguments()[1:], []).theta, p.start)


@pytest.mark.gpu
def test_captured_steps_equal_full_unrolling_in_float64_on_the_gpu():
    p = problem(soft=True)
    engine = AdjointEngine(p.network, momentum=0.9)
    p.network.body.cuda()
    for call in range(3):
        taken = [
            Step(s.index.cuda(), s.augment) for s in drawn_steps(STRATEGY, 4, count=12, seed=call)
        ]
        for step in taken:
            object.__setattr__(step.augment, "params", step.augment.params.to("cuda"))
        start, target = p.start.cuda(), p.target.cuda()
        arguments = (
            p.images.cuda(),
            p.labels.cuda(),
            p.alpha.cuda(),
            start,
            matching_loss(start, target),
        )
        exact = unrolled_gradients(p.network, *arguments, taken, momentum=0.9)
        assert_equal(engine.gradients(*arguments, taken), exact)
        assert engine._captured.replayer.active

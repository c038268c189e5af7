"""AutoAttack: its numbers, and nothing of its surroundings changed."""

import contextlib
import logging
import random
import sys

import pytest
import torch
from attack_models import (
    RowNetwork,
    linear_problem,
    make_attack,
    perturb,
    rng,
    task_of,
    trained_network,
)
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import accuracy
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.seeds import ExampleGenerator

LINF = ThreatModel("Linf", 0.1)


def run(attack, count=12, threat=LINF, model=None, **options):
    task = trained_network()
    images, labels = task.images[:count], task.labels[:count]
    return perturb(attack, model or task.model, images, labels, threat, **options)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_survive_at_the_median_distance(norm, dtype):
    problem = linear_problem((1, 8, 8), norm, dtype=dtype)
    outcome = attack_student(
        problem.model,
        problem.images,
        problem.labels,
        make_attack("autoattack", attacks=["apgd-ce", "fab-t"]),
        ThreatModel(norm, problem.eps),
        seed=0,
        batch_size=8,
    )
    assert torch.equal(outcome.robust, problem.distances > problem.eps)
    assert outcome.violations.examples == 0


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6)])
def test_it_breaks_at_least_what_pgd_breaks(norm, eps):
    task = trained_network()
    images, labels = task.images[:40], task.labels[:40]
    left = [
        attack_student(task.model, images, labels, attack, ThreatModel(norm, eps), 0, 64).robust
        for attack in (
            make_attack("fgsm"),
            make_attack("pgd"),
            make_attack("autoattack", attacks=["apgd-ce", "apgd-t"]),
        )
    ]
    assert accuracy(left[0]) > accuracy(left[1]) >= accuracy(left[2])
    assert not (left[2] & ~left[1]).any()


class FewClasses(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = RowNetwork(25, classes).float()

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("classes", "remark"), [(2, "apgd-t was left out"), (3, "apgd-dlr for apgd-t"), (5, "")]
)
def test_the_standard_version_runs_with_few_classes(classes, remark):
    model = FewClasses(classes)
    images = torch.rand(2, 1, 5, 5, generator=rng(2))
    labels = model(images).argmax(1)
    attack = make_attack("autoattack")
    # Large enough for the first attack to break both: the others only have to be there.
    said = []
    found = perturb(attack, model, images, labels, ThreatModel("Linf", 0.5), remarks=said)
    assert (model(found).argmax(1) != labels).all()
    assert [remark in text for text in said] == ([True] if remark else [])


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.003), ("L2", 0.006)])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_all_parts_run_to_their_end_where_nothing_breaks(norm, eps, classes):
    model = FewClasses(classes)
    images = torch.rand(3, 1, 5, 5, generator=rng(2))
    logits = model(images)
    top = logits.topk(2, dim=1).values
    safe = (top[:, 0] - top[:, 1]).argmax().unsqueeze(0)
    parts = ["apgd-ce", "fab-t", "fab", *["apgd-dlr", "apgd-t"][: classes - 2]]
    attack = make_attack("autoattack", attacks=parts)
    said, threat = [], ThreatModel(norm, eps)
    found = perturb(attack, model, images[safe], logits[safe].argmax(1), threat, remarks=said)
    assert torch.equal(found, images[safe])
    assert said == []


@pytest.mark.parametrize(("part", "classes"), [("apgd-dlr", 2), ("apgd-t", 3)])
def test_a_part_that_needs_more_classes_is_refused(part, classes):
    model = FewClasses(classes)
    images = torch.rand(2, 1, 5, 5, generator=rng())
    with pytest.raises(UsageError, match=rf"{part} needs {classes + 1} classes, not {classes}"):
        perturb(
            make_attack("autoattack", attacks=[part]), model, images, torch.tensor([0, 1]), LINF
        )


def test_square_in_l2_is_refused_where_its_windows_do_not_fit():
    model = RowNetwork(16, 4).float()
    images = torch.rand(2, 1, 4, 4, generator=rng())
    with pytest.raises(UsageError, match="5 by 5 pixels in L2, not 4"):
        perturb(
            make_attack("autoattack"), model, images, torch.tensor([0, 1]), ThreatModel("L2", 0.1)
        )


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6)])
def test_the_whole_standard_version_on_eight_examples(norm, eps):
    task = trained_network()
    images, labels, threat = task.images[:8], task.labels[:8], ThreatModel(norm, eps)
    standard = make_attack("autoattack")
    left = attack_student(task.model, images, labels, standard, threat, 0, 64)
    pgd = attack_student(task.model, images, labels, make_attack("pgd"), threat, 0, 64)
    assert not (left.robust & ~pgd.robust).any()
    assert left.violations.examples == 0
    assert left.warnings == ()


def test_the_same_seed_gives_the_same_examples_and_another_does_not():
    attack = make_attack("autoattack", attacks=["apgd-ce"])
    first = run(attack)
    torch.manual_seed(77)
    assert torch.equal(run(attack), first)
    assert not torch.equal(run(attack, seed=1), first)


def test_global_generators_trace_and_logger_stay_as_they_were():
    logger = logging.getLogger("auto-attack")
    handler = logging.NullHandler()

    def trace(frame, event, argument):
        return None

    def states():
        return (
            torch.random.get_rng_state().numpy().tobytes(),
            random.getstate(),
            torch.initial_seed(),
            logger.level,
            list(logger.handlers),
            logger.propagate,
        )

    logger.addHandler(handler)
    before, tracer = states(), sys.gettrace()
    try:
        sys.settrace(trace)
        run(make_attack("autoattack", attacks=["apgd-ce"]), count=3)
        after, traced = states(), sys.gettrace()
    finally:
        sys.settrace(tracer)
        logger.removeHandler(handler)
    assert after == before
    assert traced is trace


def test_they_stay_so_when_the_model_fails():
    class Failing(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled() and x.requires_grad:
                raise RuntimeError("no gradients here")
            return x.flatten(1)[:, :10]

    task = trained_network()
    labels = Failing()(task.images[:4]).argmax(1)
    before, tracer = torch.random.get_rng_state(), sys.gettrace()
    logger = logging.getLogger("auto-attack")
    with pytest.raises(RuntimeError, match="no gradients here"):
        perturb(make_attack("autoattack"), Failing(), task.images[:4], labels, LINF)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.gettrace() is tracer
    assert (logger.handlers, logger.propagate, logger.level) == ([], True, logging.NOTSET)


def test_parameters_that_are_not_frozen_get_no_gradients():
    task = trained_network()
    run(make_attack("autoattack", attacks=["fab-t"]), count=3)
    assert all(p.grad is None and p.requires_grad for p in task.model.parameters())


class Softmax(nn.Module):
    def forward(self, x):
        return trained_network().model(x).softmax(1)


class Noisy(nn.Module):
    def forward(self, x):
        return trained_network().model(x + 0.3 * torch.randn_like(x))


class GradientInside(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(inner.square().sum(), inner)
        return trained_network().model(x + 0 * slope)


@pytest.mark.parametrize(
    ("canary", "flag"),
    [
        (Softmax, "it seems that the output is a probability distribution"),
        (Noisy, "it seems to be a randomized defense"),
        (GradientInside, "it seems to be a dynamic defense"),
    ],
)
def test_flags_are_collected_once_and_nothing_is_printed(canary, flag, capfd, recwarn):
    attack, said = make_attack("autoattack", attacks=("apgd-ce",)), []
    run(attack, count=6, model=canary(), batch_size=6, remarks=said)
    assert [flag in text for text in said] == [True]
    assert "flags_doc" not in said[0]
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_flags_that_differ_in_their_numbers_only_are_one():
    class Flat(nn.Module):
        """Without a gradient in all images whose first pixel is below .5."""

        def forward(self, x):
            lit = (x[:, :1, :1, :1] >= 0.5).float().flatten(1)
            return trained_network().model(x * lit[:, :, None, None])

    images = torch.rand(6, 1, 8, 8, generator=rng())
    images[:3, 0, 0, 0], images[3:, 0, 0, 0] = 0.1, 0.9
    images[4, 0, 0, 0] = 0.1
    model = Flat()
    attack = make_attack("autoattack", attacks=("apgd-dlr",))
    labels = model(images).argmax(1)
    remarks = attack_student(model, images, labels, attack, LINF, 0, 3).warnings
    assert len(remarks) == 1
    assert "3 points with zero gradient" in remarks[0]


def test_a_dynamic_model_does_not_colour_the_next_one():
    attack = make_attack("autoattack", attacks=["apgd-ce"])
    before, after = [], []
    run(attack, count=2, model=GradientInside(), remarks=before)
    assert before
    run(make_attack("autoattack", attacks=["apgd-ce"]), count=2, remarks=after)
    assert after == []


def test_seeds_per_example_are_refused_since_it_draws_for_the_batch():
    task = trained_network()
    generator = ExampleGenerator(torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match="a seed of its own"):
        make_attack("autoattack").perturb(
            task_of(task.model, task.images[:2], task.labels[:2], LINF, generator)
        )


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with contextlib.suppress(KeyError):
        monkeypatch.delitem(sys.modules, "pyautoattack.autoattack")
    with pytest.raises(UsageError, match="pip install pyautoattack"):
        run(make_attack("autoattack"), count=2)


def test_unknown_and_repeated_parts_are_refused():
    with pytest.raises(ValueError, match="twice"):
        make_attack("autoattack", attacks=("square", "square"))

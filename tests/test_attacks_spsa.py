"""SPSA: the estimate, Adam's steps, and what it costs."""

import pytest
import torch
from attack_models import (
    RowNetwork,
    linear_problem,
    make_attack,
    perturb,
    refusal,
    rng,
    task_of,
    trained_network,
)
from robustdd_attacks.spsa import estimate
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.seeds import ExampleGenerator


class Counted(nn.Module):
    """A network that counts images and keeps the last ones, and has no gradient to give."""

    def __init__(self, network):
        super().__init__()
        self.network, self.count = network, 0

    def forward(self, x):
        self.count += len(x)
        self.last = x.detach()
        return self.network(x.detach())


def streams(count):
    return ExampleGenerator(2, torch.arange(count))


@pytest.mark.parametrize("targeted", [False, True])
def test_the_estimate_is_that_of_the_formula_and_tends_to_the_gradient(targeted):
    network = RowNetwork(6, 4, seed=1)
    images = torch.rand(3, 1, 2, 3, generator=rng(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    task = task_of(network, images, labels, ThreatModel("Linf", 0.1, targeted), streams(3))
    found = estimate(network, task, images, 600, 1e-3)
    draws = streams(3)
    total = torch.zeros_like(images)
    for _ in range(600):
        signs = torch.where(draws.bits((1, 2, 3)) < 0, -1.0, 1.0).double()
        for i in range(3):
            lead = []
            for side in (1, -1):
                z = network(images[i : i + 1] + side * 1e-3 * signs[i : i + 1])[0].tolist()
                own = z.pop(int(labels[i]))
                lead.append((max(z) - own) * (-1 if targeted else 1))
            total[i] += (lead[0] - lead[1]) / 2e-3 * signs[i]
    torch.testing.assert_close(found, total / 600, rtol=1e-9, atol=1e-9)
    x = images.clone().requires_grad_()
    z = network(x)
    own = z.gather(1, labels.unsqueeze(1)).squeeze(1)
    lead = z.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own
    (exact,) = torch.autograd.grad(lead.sum() * (-1 if targeted else 1), x)
    error = (found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert error.max() < 0.25  # sqrt(5 / 600) = .09 is expected


def test_it_takes_the_steps_of_adam():
    network = RowNetwork(6, 4, seed=1)
    images = torch.rand(3, 1, 2, 3, generator=rng(1), dtype=torch.float64)
    labels = network(images).argmax(1)
    model, threat = Counted(network), ThreatModel("Linf", 0.05)
    attack = make_attack("spsa", queries=1 + 4 * 11, pairs=5, rate=0.4, check_every=0)
    attack.perturb(task_of(model, images, labels, threat, streams(3)))
    draws = streams(3)
    draws = ExampleGenerator(draws.bits(()), draws.index)
    task = task_of(network, images, labels, threat, draws)
    x = nn.Parameter(images.clone())
    adam = torch.optim.Adam([x], lr=0.4 * 0.05, maximize=True)
    for _ in range(4):
        x.grad = estimate(network, task, x.detach(), 5, 0.01)
        adam.step()
        with torch.no_grad():
            x.copy_(threat.project(x, images))
    torch.testing.assert_close(model.last, x.detach(), rtol=0, atol=1e-10)


def test_it_needs_no_gradient_and_keeps_to_its_budget():
    task = trained_network()
    images, labels = task.images[:30], task.labels[:30]
    model = Counted(task.model).eval()
    for check_every in (0, 1):
        model.count = 0
        attack = make_attack("spsa", queries=300, pairs=16, check_every=check_every)
        found = perturb(attack, model, images, labels, ThreatModel("Linf", 0.15))
        broken = int((task.model(found).argmax(1) != labels).sum())
        assert broken > 10
        whole = 30 * (1 + 9 * 33)
        assert whole <= 30 * 300
        assert model.count == whole if check_every == 0 else model.count < whole


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_half_survive_at_the_median_distance(norm, targeted):
    problem = linear_problem((1, 2, 3), norm)
    labels = 1 - problem.labels if targeted else problem.labels
    found = perturb(
        make_attack("spsa", queries=1000, pairs=32),
        problem.model,
        problem.images,
        labels,
        ThreatModel(norm, problem.eps, targeted),
        batch_size=7,
    )
    broken = problem.model(found).argmax(1) != problem.labels
    assert not (broken & (problem.distances > problem.eps)).any()
    # In L2 the direction of an estimate is not exact, and the last few per cent are not reached.
    reached = problem.distances <= (1 if norm == "Linf" else 0.95) * problem.eps
    assert broken[reached].all()


def test_when_broken_examples_leave_changes_nothing_of_what_is_broken():
    task, threat = trained_network(), ThreatModel("Linf", 0.1)
    found = [
        perturb(
            make_attack("spsa", queries=300, pairs=8, check_every=every),
            task.model,
            task.images[:40],
            task.labels[:40],
            threat,
        )
        for every in (0, 1, 4)
    ]
    wrong = [task.model(x).argmax(1) != task.labels[:40] for x in found]
    assert torch.equal(wrong[0], wrong[1])
    assert torch.equal(wrong[0], wrong[2])
    assert 5 < int(wrong[0].sum()) < 40


@pytest.mark.parametrize(
    "config", [{"queries": 0}, {"pairs": 0}, {"delta": 0.0}, {"rate": 0.0}, {"check_every": -1}]
)
def test_settings_out_of_range_are_refused(config):
    (key,) = config
    assert f"{key} " in refusal("spsa", **config)


def test_a_budget_without_a_step_is_refused():
    told = refusal("spsa", queries=100, pairs=64)
    assert "queries must be at least 2 pairs + 2 = 130" in told

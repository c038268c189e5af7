"""Canaries: students whose robust accuracy must not be believed, and honest ones that must pass.

Each is examined with the whole suite and with every check that `check_student` can make; the table
names the check that has to catch it.
"""

import copy
from functools import cache

import pytest
import torch
from attack_models import make_attack, registered_attacks, rng, trained_network
from sklearn.datasets import load_digits
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.sanity import student_checks as sanity
from robustdd_bench.toolkit.adversarial import Adversary

HEADLINE = ThreatModel("Linf", 0.1)
BATCH = 64
SUITE = [
    name for name in ("noise", "fgsm", "pgd", "square", "apgd-ce") if name in registered_attacks()
]


class Around(nn.Module):
    """The trained network with functions around it."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.before, self.after = before, after
        self.network = copy.deepcopy(trained_network().model)

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class BatchStatistics(nn.BatchNorm2d):
    """Batch normalisation that stays in train mode."""

    def train(self, mode=True):
        return super().train(True)


def batch_norm():
    model = copy.deepcopy(trained_network().model)
    return nn.Sequential(BatchStatistics(1, affine=False, track_running_stats=False), model)


def noise_layer():
    generator = rng(1)
    return Around(before=lambda x: x + 0.05 * torch.randn(x.shape, generator=generator))


def random_forward():
    generator = rng(2)
    return Around(before=lambda x: x if torch.rand((), generator=generator) < 0.5 else x.flip(3))


CANARIES = {
    "logits times 1000": (lambda: Around(after=lambda z: 1000 * z), {"input gradient"}),
    "quantised input": (
        lambda: Around(before=lambda x: (4 * x).round() / 4),
        {"input gradient", "unconstrained attack succeeds"},
    ),
    "noise layer": (noise_layer, {"deterministic forward"}),
    "softmax output": (lambda: Around(after=lambda z: z.softmax(1)), {"outputs are logits"}),
    "random forward pass": (random_forward, {"deterministic forward"}),
    "batch statistics": (batch_norm, {"eval mode"}),
}
"""Each canary, and the checks that have to catch it."""


@cache
def adversarially_trained():
    """The network of the other tests, taught with PGD-AT at .1 for 150 steps."""
    data = load_digits()
    images = torch.tensor(data.images[120:] / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target[120:])
    model = copy.deepcopy(trained_network().model)
    adversary = Adversary(threat=HEADLINE, steps=5, step_size=0.04)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = rng(3)
    for _ in range(150):
        batch = torch.randint(len(labels), (128,), generator=generator)
        x, y = images[batch], labels[batch]

        def loss(point, y=y):
            return nn.functional.cross_entropy(model(point), y, reduction="sum")

        attacked = adversary.maximise(loss, x, generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(attacked), y).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def classified_right(model):
    task = trained_network()
    return classified(model, task.images, task.labels, BATCH)


def attacked(model, name, attack, clean):
    """All images in one batch."""
    task = trained_network()
    return attack_student(
        model, task.images, task.labels, attack, HEADLINE, 0, len(clean), clean, name=name
    )


def examine(model, **square):
    """The suite's square attack has these settings: a canary must not need all of its queries."""
    task, clean = trained_network(), classified_right(model)
    suite = {name: make_attack(name, **(square if name == "square" else {})) for name in SUITE}
    outcomes = [attacked(model, name, attack, clean) for name, attack in suite.items()]
    return sanity.check_student(
        model,
        task.images,
        task.labels,
        clean=clean,
        outcomes=outcomes,
        unconstrained=make_attack("pgd", steps=40),
        seed=0,
        batch_size=BATCH,
        suite=suite,
        headline=HEADLINE,
    )


def failures(model, **square):
    return {check.name: check.evidence for check in examine(model, **square) if not check.passed}


@pytest.mark.parametrize("name", CANARIES)
def test_a_canary_is_flagged_by_the_check_made_for_it(name):
    make, checks = CANARIES[name]
    assert checks <= set(failures(make(), queries=500))


def test_logits_times_1000_fool_the_cross_entropy_but_not_the_attacks():
    assert set(failures(CANARIES["logits times 1000"][0]())) == {"input gradient"}


def test_a_plain_network_is_not_flagged():
    checks = examine(trained_network().model)
    assert [check for check in checks if not check.passed] == []
    assert len({check.name for check in checks}) == len(checks) == 11


def test_an_adversarially_trained_network_is_not_flagged_and_is_more_robust():
    model = adversarially_trained()
    assert failures(model) == {}
    apgd = make_attack("apgd-ce")
    left = [
        int(attacked(network, "apgd-ce", apgd, classified_right(network)).robust.sum())
        for network in (trained_network().model, model)
    ]
    assert left[1] > 1.3 * left[0]


def test_a_quantised_input_is_also_flagged_because_noise_beats_gradients():
    found = failures(Around(before=lambda x: (2 * x).round() / 2), queries=500)
    assert "noise breaks" in found["gradient-free attacks are not better"]

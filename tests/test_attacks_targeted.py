"""Targeted attacks: which class they choose, and what counts as broken."""

import pytest
import torch
from attack_models import (
    RowNetwork,
    make_attack,
    perturb,
    refusal,
    registered_attacks,
    rng,
    task_of,
    trained_network,
)
from robustdd_attacks.targeted import target_classes

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.config import config_to_dict
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.seeds import ExampleGenerator

BASES = {
    "fgsm-targeted": "fgsm",
    "pgd-targeted": "pgd",
    "mim-targeted": "mim",
    "apgd-targeted": "apgd-ce",
    "cw-targeted": "cw",
}
QUICK = {
    "apgd-targeted": {"steps": 10},
    "cw-targeted": {"steps": 20, "binary_steps": 2, "initial_c": 0.1, "learning_rate": 0.05},
}
TARGETS = ["next", "least-likely", "random"]


def norm_of(name):
    return "L2" if name == "cw-targeted" else "Linf"


def problem(count=12):
    network = RowNetwork(9, 5, seed=3)
    images = torch.rand(count, 1, 3, 3, generator=rng(5), dtype=torch.float64)
    return network, images, network(images).detach().argmax(1)


def given(target, seed=0, count=12):
    network, images, labels = problem(count)
    task = task_of(
        network,
        images,
        labels,
        ThreatModel("Linf", 0.1),
        ExampleGenerator(seed, torch.arange(count)),
    )
    return target_classes(task, target), labels, network(images)


def test_every_targeted_attack_is_held_to_this_page():
    assert {name for name in registered_attacks() if name.endswith("-targeted")} == set(BASES)


@pytest.mark.parametrize("target", TARGETS)
def test_the_class_to_reach_is_never_the_label(target):
    for seed in range(5):
        found, labels, logits = given(target, seed)
        assert (found != labels).all()
        assert ((found >= 0) & (found < logits.shape[1])).all()


def test_next_is_the_label_plus_one_and_least_likely_the_smallest_wrong_logit():
    found, labels, logits = given("next")
    assert torch.equal(found, (labels + 1) % 5)
    found, labels, logits = given("least-likely")
    wrong = logits.scatter(1, labels.unsqueeze(1), torch.inf)
    assert torch.equal(found, wrong.argmin(1))


def test_a_label_with_the_smallest_logit_is_no_target():
    network, images, _ = problem()
    labels = network(images).argmin(1)
    task = task_of(network, images, labels, ThreatModel("Linf", 0.1))
    assert (target_classes(task, "least-likely") != labels).all()


def test_random_is_uniform_over_the_wrong_classes_and_depends_on_the_seed_alone():
    counts = torch.zeros(5)
    for seed in range(400):
        found, labels, _ = given("random", seed, count=3)
        counts += torch.bincount((found - labels) % 5, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 300).abs().max() < 60  # four standard deviations
    assert torch.equal(given("random", 7)[0], given("random", 7)[0])
    assert not torch.equal(given("random", 7)[0], given("random", 8)[0])


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("target", ["next", "least-likely"])
def test_it_is_its_base_under_a_targeted_threat_model(name, target):
    network, images, labels = problem()
    norm = norm_of(name)
    config = QUICK.get(name, {})
    found = perturb(
        make_attack(name, target=target, **config), network, images, labels, ThreatModel(norm, 0.1)
    )
    targets = given(target)[0]
    base = make_attack(BASES[name], **config)
    expected = perturb(base, network, images, targets, ThreatModel(norm, 0.1, targeted=True))
    assert torch.equal(found, expected)
    direct = perturb(
        make_attack(name, target=target, **config),
        network,
        images,
        targets,
        ThreatModel(norm, 0.1, targeted=True),
    )
    assert torch.equal(direct, expected)


def test_what_counts_is_any_misclassification_and_what_reaches_its_target_counts():
    task, threat = trained_network(), ThreatModel("Linf", 0.15)
    attack = make_attack("pgd-targeted")
    found = perturb(attack, task.model, task.images, task.labels, threat)
    answer = task.model(found).argmax(1)
    right = task.model(task.images).argmax(1) == task.labels
    reached = answer == (task.labels + 1) % 10
    outcome = attack_student(task.model, task.images, task.labels, attack, threat, 0, 120)
    broken = outcome.tried & ~outcome.robust
    assert torch.equal(broken, right & (answer != task.labels))
    assert not (reached & right & ~broken).any()
    assert 0 < int((reached & right).sum()) < int(broken.sum())


def test_the_settings_are_those_of_the_base_and_the_target():
    for name, base in BASES.items():
        mine = config_to_dict(registered_attacks()[name].Config())
        assert mine.pop("target") == "next"
        assert mine == config_to_dict(registered_attacks()[base].Config())


def test_nonsense_is_refused():
    assert "target must be 'next', 'least-likely' or 'random'" in refusal(
        "pgd-targeted", target="nearest"
    )
    assert "steps " in refusal("pgd-targeted", steps=0)
    assert "restarts differ only" in refusal("pgd-targeted", restarts=2, random_start=False)

"""PGD against a naive loop, its options, and a planted adversarial example."""

import math

import pytest
import torch
from attack_models import (
    RowNetwork,
    linear_problem,
    make_attack,
    perturb,
    refusal,
    rng,
    trained_network,
)
from robustdd_attacks.common import Best, judge
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.seeds import ExampleGenerator

NORMS = ["Linf", "L2"]


def naive_start(image, threat, generator):
    shape = image.shape
    if threat.norm == "Linf":
        delta = generator.uniform(shape, -threat.eps, threat.eps, image.dtype)[0]
    else:
        radius = generator.uniform((1, 1, 1), dtype=image.dtype)[0] ** (1 / image.numel())
        direction = generator.normal(shape, image.dtype)[0]
        delta = threat.eps * radius * direction / direction.norm()
    return (image + delta).clamp(0, 1)


def naive_pgd(model, image, label, threat, seed, index, steps):
    """Madry's attack on one example, with the cross-entropy; all iterates are kept and sorted."""
    sign = -1 if threat.targeted else 1
    x = naive_start(image, threat, ExampleGenerator(seed, torch.tensor([index])))
    iterates = []
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        logits = model(x.unsqueeze(0))
        loss = sign * nn.functional.cross_entropy(logits, torch.tensor([label]))
        success = (int(logits.argmax()) == label) == threat.targeted
        (gradient,) = torch.autograd.grad(loss, x)
        iterates.append((success, float(loss.detach()), -step, x.detach()))
        unit = gradient.sign() if threat.norm == "Linf" else gradient / gradient.norm()
        delta = x.detach() + 2.5 * threat.eps / steps * unit - image
        if threat.norm == "Linf":
            delta = delta.clamp(-threat.eps, threat.eps)
        elif delta.norm() > threat.eps:
            delta = delta * threat.eps / delta.norm()
        x = (image + delta).clamp(0, 1)
    return max(iterates, key=lambda iterate: iterate[:3])[3]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_equals_a_naive_loop_over_examples_with_the_cross_entropy(norm, targeted, eps):
    model = RowNetwork(12, 5)
    images = torch.rand(10, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    labels = torch.randint(5, (10,), generator=rng(3))
    threat = ThreatModel(norm, eps, targeted)
    found = perturb(make_attack("pgd", steps=7), model, images, labels, threat, batch_size=4)
    naive = [
        naive_pgd(model, images[i], int(labels[i]), threat, 0, i, steps=7)
        for i in range(len(images))
    ]
    torch.testing.assert_close(found, torch.stack(naive), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_restart_changes_only_what_is_not_broken_yet(norm):
    task = trained_network()
    threat = ThreatModel(norm, {"Linf": 0.06, "L2": 0.35}[norm])
    once, twice = (
        perturb(
            make_attack("pgd", steps=4, restarts=restarts),
            task.model,
            task.images,
            task.labels,
            threat,
        )
        for restarts in (1, 6)
    )
    broken = task.model(once).argmax(1) != task.labels
    again = task.model(twice).argmax(1) != task.labels
    assert 0 < broken.sum() < len(broken)
    assert torch.equal(once[broken], twice[broken])
    assert not (broken & ~again).any()
    loss = [
        nn.functional.cross_entropy(task.model(x), task.labels, reduction="none")
        for x in (once, twice)
    ]
    assert (loss[1][~again] >= loss[0][~again] - 1e-6).all()
    assert not torch.equal(once[~broken], twice[~broken])


def test_restarts_stop_when_everything_is_broken():
    problem = linear_problem((1, 4, 4), "Linf")
    passes = []
    problem.model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    attack = make_attack("pgd", steps=5, restarts=9)
    perturb(attack, problem.model, problem.images, problem.labels, ThreatModel("Linf", 0.2))
    assert passes == [16] * 6


def test_the_best_iterate_is_returned_and_not_the_last():
    class Valley(nn.Module):
        """Class 1 wins in a thin slice only, which a long step flies over."""

        def forward(self, x):
            u = x.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(u), 0.01 - (u - 0.6) ** 2], 1)

    image = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    attack = make_attack("pgd", steps=2, step_size=0.1, random_start=False)
    threat = ThreatModel("Linf", 0.4)
    found = perturb(attack, Valley(), image, torch.tensor([0]), threat)
    # The iterates are .5, .6 and then .7 or .5; only .6 is misclassified with room to spare.
    assert float(found) == pytest.approx(0.6)


def test_a_misclassified_candidate_beats_one_of_higher_loss():
    # Two rivals just below the label have a larger cross-entropy than one rival just above it.
    near_miss = torch.tensor([[0.0, -0.01, -0.01]])
    success = torch.tensor([[0.0, 0.1, -10.0]])
    labels = torch.tensor([0])
    assert nn.functional.cross_entropy(near_miss, labels) > nn.functional.cross_entropy(
        success, labels
    )
    for order in [(near_miss, success), (success, near_miss)]:
        best = Best(torch.zeros(1, 1, 1, 1))
        for logits in order:
            best.offer(torch.full((1, 1, 1, 1), float(logits[0, 1])), *judge(logits, labels, False))
        assert float(best.images) == pytest.approx(0.1)
        assert best.success.tolist() == [True]


@pytest.mark.parametrize("norm", NORMS)
def test_large_logits_do_not_hide_the_way(norm):
    task = trained_network()

    class Scaled(nn.Module):
        def forward(self, x):
            return 1000 * task.model(x)

    clean = task.model(task.images).argmax(1) == task.labels
    images, labels = task.images[clean], task.labels[clean]
    pixels = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(Scaled()(pixels), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    hidden = gradient.flatten(1).abs().amax(1) == 0
    assert hidden.double().mean() > 0.9  # the cross-entropy has saturated
    threat = ThreatModel(norm, {"Linf": 0.1, "L2": 0.6}[norm])
    for name in ("fgsm", "pgd"):
        broken = [
            model(perturb(make_attack(name), model, images, labels, threat)).argmax(1) != labels
            for model in (task.model, Scaled())
        ]
        share = [float(bits.double().mean()) for bits in broken]
        assert share[1] == pytest.approx(share[0], abs=0.05)
        assert share[1] > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"relative_step": 0.0}, "relative_step must be more than 0, not 0.0"),
        ({"step_size": -1.0}, "step_size must be more than 0, not -1.0"),
        ({"restarts": 0}, "restarts must be at least 1, not 0"),
        ({"restarts": 2, "random_start": False}, "restarts differ only with random_start = true"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    assert refusal("pgd", **options) == message


def test_noise_keeps_the_worst_draw():
    problem = linear_problem((1, 4, 4), "Linf")
    losses = []
    for draws in (1, 4, 16):
        found = perturb(
            make_attack("noise", draws=draws),
            problem.model,
            problem.images,
            problem.labels,
            ThreatModel("Linf", 0.03),
        )
        losses.append(
            nn.functional.cross_entropy(problem.model(found), problem.labels, reduction="none")
        )
    assert (losses[1] >= losses[0]).all()
    assert (losses[2] >= losses[1]).all()
    assert (losses[2] > losses[0]).any()
    assert refusal("noise", draws=0) == "draws must be at least 1, not 0"


def test_noise_in_l2_lies_on_the_sphere():
    model = RowNetwork(64, 3)
    images = torch.full((20, 1, 8, 8), 0.5, dtype=torch.float64)
    threat = ThreatModel("L2", 0.4)
    found = perturb(make_attack("noise"), model, images, torch.arange(20) % 3, threat)
    torch.testing.assert_close(
        threat.distance(found, images), torch.full((20,), 0.4, dtype=torch.float64)
    )


def plant(features, image, threat, seed):
    """A linear head on the features, under which one hidden corner of the ball is misclassified.

    After Zimmermann et al. 2022 ("Increasing confidence in adversarial robustness evaluations"):
    points inside the ball get label 0 and one point on its edge label 1; the head that separates
    them with least squares turns the question "is the attack able to find it" into a fact.
    """
    generator = rng(seed)
    corner = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    if threat.norm == "Linf":
        corner = threat.eps * corner.sign()
        inner = threat.eps * (2 * torch.rand(60, *image.shape, generator=generator) - 1)
    else:
        corner = threat.eps * corner / corner.norm()
        inner = torch.randn(60, *image.shape, generator=generator)
        inner = threat.eps * inner / inner.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    inner = torch.cat([image.unsqueeze(0), image + inner.to(image.dtype)])
    planted = (image + corner).unsqueeze(0)
    hidden = features(torch.cat([inner, planted])).detach()
    centre = hidden[0]
    target = torch.zeros(len(hidden), dtype=image.dtype)
    target[-1] = 1
    ridge = 1e-6 * torch.eye(len(hidden), dtype=image.dtype)
    kernel = (hidden - centre) @ (hidden - centre).T
    w = (hidden - centre).T @ torch.linalg.solve(kernel + ridge, target)
    response = (hidden - centre) @ w
    # The boundary lies just below the planted point, above every inner one.
    threshold = 0.9 * response[-1] + 0.1 * response[:-1].max()

    def model(x):
        score = (features(x) - centre) @ w - threshold
        return torch.stack([-score, score], 1)

    return model, planted


@pytest.mark.parametrize("norm", NORMS)
def test_a_planted_adversarial_example_is_found(norm):
    generator = rng(4)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Softplus(beta=5),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 80),
        nn.Softplus(beta=5),
    ).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw / math.sqrt(max(parameter[0].numel(), 1)))
    threat = ThreatModel(norm, {"Linf": 0.1, "L2": 0.5}[norm])
    found = {"pgd": 0, "noise": 0}
    count = 12
    for place in range(count):
        image = 0.3 + 0.4 * torch.rand(1, 8, 8, generator=generator, dtype=torch.float64)
        model, planted = plant(layers, image, threat, place)
        assert int(model(image.unsqueeze(0)).argmax()) == 0
        assert int(model(planted).argmax()) == 1
        assert threat.distance(planted, image.unsqueeze(0)) <= threat.eps + 1e-9
        for name in found:
            example = perturb(
                make_attack(name), model, image.unsqueeze(0), torch.tensor([0]), threat, seed=place
            )
            found[name] += int(model(example).argmax())
    assert found == {"pgd": count, "noise": 0}

"""APGD: its checkpoints, algorithm 1 as a naive loop, the ratio losses, and what it breaks."""

import math

import pytest
import torch
from attack_models import (
    RowNetwork,
    make_attack,
    perturb,
    quick_attack,
    refusal,
    rng,
    task_of,
    trained_network,
)
from robustdd_attacks import apgd
from robustdd_attacks.common import in_ball
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.seeds import ExampleGenerator

NORMS = ["Linf", "L2"]
VARIANTS = ["apgd-ce", "apgd-dlr", "apgd-t"]
HEADLINE = {"Linf": 0.1, "L2": 0.6}

each_norm = pytest.mark.parametrize("norm", NORMS)


def test_the_checkpoints_are_those_of_the_paper():
    # By hand: p = .22, .41, .57, .70, .80, .87, .93, .99, 1.05 (gaps .19 .16 .13 .10 .07 .06 .06).
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd.checkpoints(50) == [11, 21, 29, 35, 40, 44, 47]  # 49.5 is rounded up to the end
    assert apgd.checkpoints(10) == [3, 5, 6, 7, 8, 9]
    assert apgd.checkpoints(1) == []


def naive_entropy(logits, label, _):
    return nn.functional.cross_entropy(logits.unsqueeze(0), torch.tensor([label]))


def naive_dlr(logits, label, _):
    others = [z for k, z in enumerate(logits) if k != label]
    ranked = sorted(logits, reverse=True)
    return (max(others) - logits[label]) / (ranked[0] - ranked[2] + 1e-12)


def naive_dlr_towards(logits, label, target):
    ranked = sorted(logits, reverse=True)
    return (logits[target] - logits[label]) / (ranked[0] - (ranked[2] + ranked[3]) / 2 + 1e-12)


def project(x, image, threat):
    delta = x - image
    if threat.norm == "Linf":
        delta = delta.clamp(-threat.eps, threat.eps)
    elif delta.norm() > threat.eps:
        delta = delta * threat.eps / delta.norm()
    return (image + delta).clamp(0, 1)


def naive_apgd(model, image, label, threat, steps, loss, target, start):
    """Algorithm 1 of the paper on one example; every value is kept in lists.

    Returns the sequence of points and the number of halvings.
    """

    def evaluate(x):
        x = x.detach().requires_grad_()
        value = loss(model(x.unsqueeze(0))[0], label, target)
        (gradient,) = torch.autograd.grad(value, x)
        unit = gradient.sign() if threat.norm == "Linf" else gradient / gradient.norm()
        return float(value.detach()), unit

    marks = [0]
    before, p = 0.0, 0.22
    while math.ceil(round(p * steps, 9)) < steps:
        marks.append(math.ceil(round(p * steps, 9)))
        before, p = p, p + max(p - before - 0.03, 0.06)
    x = [start]
    f, unit = evaluate(start)
    values, units, visited = [f], [unit], [start]
    eta = [2 * threat.eps]
    x.append(project(start + eta[0] * unit, image, threat))
    f, unit = evaluate(x[1])
    values.append(f)
    units.append(unit)
    visited.append(x[1])
    # The best of all points evaluated so far, and the highest value among x_0 .. x_k at each k.
    points = list(zip(values, units, visited, strict=True))
    eta.append(eta[0])
    peaks = [values[0]]
    for k in range(1, steps):
        peaks.append(max(point[0] for point in points))
        z = project(x[k] + eta[k] * units[k], image, threat)
        new = project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1]), image, threat)
        f, unit = evaluate(new)
        visited.append(new)
        points.append((f, unit, new))
        eta.append(eta[k])
        if k in marks[1:]:
            last = marks[marks.index(k) - 1]
            rises = sum(values[i + 1] > values[i] for i in range(last, k))
            stuck = rises < 0.75 * (k - last)
            stalled = eta[last] == eta[k] and peaks[last] == peaks[k]
            if stuck or stalled:
                eta[k + 1] = eta[k] / 2
                f, unit, new = max(points, key=lambda point: point[0])
        x.append(new)
        values.append(f)
        units.append(unit)
    return visited, round(math.log2(eta[0] / eta[-1]))


def best_of(model, visited, label):
    """Misclassified points first, then by the margin in log space that the attacks rank by."""
    ranks = []
    for place, x in enumerate(visited):
        logits = model(x.unsqueeze(0))[0].detach()
        others = torch.cat([logits[:label], logits[label + 1 :]])
        score = float(others.logsumexp(0) - logits[label])
        ranks.append((int(logits.argmax()) != label, score, -place))
    return visited[-max(ranks)[2]]


@each_norm
@pytest.mark.parametrize(
    ("loss", "naive"),
    [(None, naive_entropy), (apgd.dlr, naive_dlr), (apgd.dlr_towards, naive_dlr_towards)],
    ids=["cross-entropy", "ratio", "ratio towards"],
)
def test_equals_algorithm_1_as_a_naive_loop_over_examples(norm, loss, naive):
    model = RowNetwork(12, 5)
    images = torch.rand(8, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    labels = model(images).argmax(1)
    targets = (labels + torch.arange(8) % 4 + 1) % 5
    threat, steps = ThreatModel(norm, {"Linf": 0.05, "L2": 0.2}[norm]), 30
    index = torch.arange(8)
    starts = in_ball(images, threat, ExampleGenerator(0, index))
    climb = {
        apgd.dlr: lambda logits: apgd.dlr(logits, labels, False),
        apgd.dlr_towards: lambda logits: apgd.dlr_towards(logits, labels, targets),
    }.get(loss)
    problem = task_of(model, images, labels, threat, ExampleGenerator(0, index))
    found = apgd.auto_pgd(problem, steps, climb).images
    halved = []
    for i in range(8):
        visited, halvings = naive_apgd(
            model, images[i], int(labels[i]), threat, steps, naive, int(targets[i]), starts[i]
        )
        assert len(visited) == steps + 1
        halved.append(halvings)
        expected = best_of(model, visited, int(labels[i]))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-7)
    assert max(halved) >= 3
    assert min(halved) < max(halved)  # each example has a step of its own


def test_the_ratio_losses_are_blind_to_scale_and_shift():
    logits = torch.randn(6, 7, generator=rng(1), dtype=torch.float64)
    labels, targets = torch.arange(6), torch.arange(6) + 1
    for loss in (
        lambda z: apgd.dlr(z, labels, False),
        lambda z: apgd.dlr(z, labels, True),
        lambda z: apgd.dlr_towards(z, labels, targets),
    ):
        torch.testing.assert_close(loss(300 * logits - 5), loss(logits))
    positive = apgd.dlr(logits, labels, False) > 0
    assert torch.equal(positive, logits.argmax(1) != labels)
    assert positive.any()
    for i in range(6):
        row = [float(z) for z in logits[i]]
        assert float(apgd.dlr(logits, labels, False)[i]) == pytest.approx(naive_dlr(row, i, None))
        assert float(apgd.dlr_towards(logits, labels, targets)[i]) == pytest.approx(
            naive_dlr_towards(row, i, i + 1)
        )


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("targeted", [False, True])
def test_a_ratio_never_loses_its_gradient_for_want_of_classes(classes, targeted):
    # With the ratio of the paper the loss would be constant: (z1 - z2) / (z1 - z2) for two classes.
    # Untargeted, from the class that wins: beyond it the loss of the paper may be flat.
    for label in range(0 if targeted else classes - 1, classes):
        logits = torch.linspace(0.3, 1, classes, dtype=torch.float64).cumsum(0)
        logits = logits.unsqueeze(0).requires_grad_()
        losses = [apgd.dlr(logits, torch.tensor([label]), targeted)]
        if targeted:
            losses += [
                apgd.dlr_towards(logits, torch.tensor([label]), torch.tensor([target]))
                for target in range(classes)
                if target != label
            ]
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
            assert gradient.abs().max() > 1e-3


@each_norm
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_few_classes_are_attacked_as_well_as_with_pgd(name, classes, norm):
    model = RowNetwork(12, classes)
    images = torch.rand(30, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    labels = model(images).argmax(1)
    threat = ThreatModel(norm, {"Linf": 0.08, "L2": 0.25}[norm])
    broken = {
        attack: int(
            (
                model(perturb(make_attack(attack), model, images, labels, threat)).argmax(1)
                != labels
            ).sum()
        )
        for attack in (name, "pgd")
    }
    assert 0 < broken["pgd"] < 30
    assert broken[name] >= broken["pgd"]


@each_norm
@pytest.mark.parametrize("name", VARIANTS)
def test_a_targeted_threat_model_is_obeyed(name, norm):
    model = RowNetwork(12, 5)
    images = torch.rand(30, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    targets = (model(images).argmax(1) + 1 + torch.arange(30) % 4) % 5
    threat = ThreatModel(norm, {"Linf": 0.2, "L2": 0.6}[norm], targeted=True)
    reached = {
        attack: model(perturb(make_attack(attack), model, images, targets, threat)).argmax(1)
        == targets
        for attack in (name, "pgd")
    }
    assert 3 < reached["pgd"].sum() < 30
    assert reached[name].sum() >= reached["pgd"].sum() - 1


def broken_by(name, model, norm, **config):
    task = trained_network()
    clean = task.model(task.images).argmax(1) == task.labels
    images, labels = task.images[clean], task.labels[clean]
    found = perturb(
        make_attack(name, **config), model, images, labels, ThreatModel(norm, HEADLINE[norm])
    )
    return model(found).argmax(1) != labels


@each_norm
def test_at_least_as_strong_as_pgd_on_a_trained_network(norm):
    model = trained_network().model
    pgd, ce, t = (
        int(broken_by(name, model, norm, **config).sum())
        for name, config in [("pgd", {}), ("apgd-ce", {}), ("apgd-t", {"steps": 40})]
    )
    assert pgd > 0
    assert ce >= pgd
    assert t >= pgd


@each_norm
@pytest.mark.parametrize("name", VARIANTS)
def test_large_logits_do_not_hide_the_way(name, norm):
    model = trained_network().model
    config = {"steps": 20} | ({"targets": 3} if name == "apgd-t" else {})
    plain, scaled = (
        float(broken_by(name, network, norm, **config).double().mean())
        for network in (model, lambda x: 1000 * model(x))
    )
    assert scaled == pytest.approx(plain, abs=0.05)
    assert scaled > 0.3


def test_targets_come_from_the_likeliest_down_and_only_for_what_is_unbroken():
    # Class 0 is right; class 3 comes second and class 1 last, and only that one is in reach.
    class Unreachable(nn.Module):
        def forward(self, x):
            u = x.flatten(1).sum(1)
            flat = torch.zeros_like(u)
            return torch.stack([flat, 40 * (u - 0.6) - 3, flat - 2, flat - 1], 1)

    passes = []
    model = Unreachable()
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    images = torch.tensor([0.5, 0.3], dtype=torch.float64).view(2, 1, 1, 1)
    labels, threat = torch.zeros(2, dtype=torch.long), ThreatModel("Linf", 0.21)
    first, second, third = (
        perturb(make_attack("apgd-t", steps=6, targets=count), model, images, labels, threat)
        for count in (1, 2, 3)
    )
    assert model(third).argmax(1).tolist() == [1, 0]
    assert passes[:8] == [2] * 8
    more = make_attack("apgd-t", steps=6, targets=9)
    assert torch.equal(perturb(more, model, images, labels, threat), third)
    assert first.shape == second.shape


def test_the_broken_leave_before_the_next_target_or_restart():
    problem = RowNetwork(12, 5)
    images = torch.rand(20, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    labels = problem(images).argmax(1)
    for name, config in [("apgd-ce", {"restarts": 3}), ("apgd-t", {"targets": 3})]:
        passes = []
        hook = problem.register_forward_pre_hook(
            lambda _, inputs, passes=passes: passes.append(len(inputs[0]))
        )
        attack = quick_attack(name, steps=8, **config)
        perturb(attack, problem, images, labels, ThreatModel("Linf", 0.05))
        hook.remove()
        passes = passes[1:] if name == "apgd-t" else passes  # the ranking of the classes
        rounds = [set(passes[start : start + 9]) for start in range(0, len(passes), 9)]
        assert [len(sizes) for sizes in rounds] == [1, 1, 1]
        assert rounds[0] == {20}
        assert max(rounds[0]) > max(rounds[1]) >= max(rounds[2]) > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("apgd-ce", {"steps": 0}, "steps must be at least 1, not 0"),
        ("apgd-dlr", {"restarts": 0}, "restarts must be at least 1, not 0"),
        ("apgd-t", {"steps": 0}, "steps must be at least 1, not 0"),
        ("apgd-t", {"targets": 0}, "targets must be at least 1, not 0"),
        ("mim", {"steps": 0}, "steps must be at least 1, not 0"),
        ("mim", {"relative_step": 0.0}, "relative_step must be more than 0, not 0.0"),
        ("mim", {"decay": -0.5}, "decay must be at least 0, not -0.5"),
    ],
)
def test_impossible_settings_are_refused(name, options, message):
    assert refusal(name, **options) == message


@each_norm
def test_mim_without_memory_is_pgd_from_the_image(norm):
    model = RowNetwork(12, 5)
    images = torch.rand(10, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    labels, threat = model(images).argmax(1), ThreatModel(norm, 0.1)
    forgetful, pgd, mim = (
        perturb(make_attack(name, steps=6, **config), model, images, labels, threat)
        for name, config in [("mim", {"decay": 0.0}), ("pgd", {"random_start": False}), ("mim", {})]
    )
    torch.testing.assert_close(forgetful, pgd, rtol=0, atol=1e-12)
    assert not torch.allclose(mim, pgd, rtol=0, atol=1e-3)


@each_norm
def test_mim_equals_a_naive_loop_over_examples(norm):
    model = RowNetwork(12, 5)
    images = torch.rand(6, 3, 2, 2, generator=rng(2), dtype=torch.float64)
    labels, threat = model(images).argmax(1), ThreatModel(norm, 0.1)
    found = perturb(make_attack("mim", steps=5, decay=0.7), model, images, labels, threat)
    for i, image in enumerate(images):
        x, momentum, visited = image, torch.zeros_like(image), [image]
        for _ in range(5):
            x = x.detach().requires_grad_()
            loss = nn.functional.cross_entropy(model(x.unsqueeze(0)), labels[i : i + 1])
            (gradient,) = torch.autograd.grad(loss, x)
            momentum = 0.7 * momentum + gradient / gradient.abs().sum()
            unit = momentum.sign() if norm == "Linf" else momentum / momentum.norm()
            x = project(x.detach() + 0.5 * threat.eps * unit, image, threat)
            visited.append(x)
        torch.testing.assert_close(
            found[i], best_of(model, visited, int(labels[i])), rtol=0, atol=1e-12
        )

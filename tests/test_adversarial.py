import math

import pytest
import torch
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.adversarial import (
    FLAVOURS,
    Adversary,
    OverfittingGuard,
    adversarial_loss,
    attack_batch,
    boosted_cross_entropy,
    robust_loss,
)
from robustdd_bench.toolkit.fast.flat import FlatNetwork

K = 3


@pytest.fixture
def setting():
    source = torch.Generator().manual_seed(0)
    with isolated_rng(1):
        body = convnet((1, 8, 8), K, depth=2, width=4).double()
    x = torch.rand(5, 1, 8, 8, generator=source, dtype=torch.float64)
    return FlatNetwork(nn.Sequential(nn.Identity(), body)), x, torch.tensor([0, 1, 2, 1, 0])


def noise():
    return torch.Generator().manual_seed(3)


def adversary(norm="Linf", eps=0.1, steps=3, size=0.05, random_start=True):
    return Adversary(
        threat=ThreatModel(norm, eps), steps=steps, step_size=size, random_start=random_start
    )


def loss(setting, flavour, attack, generator=None, augment=None, beta=2.0):
    network, x, y = setting
    return adversarial_loss(
        flavour,
        network,
        network.theta().requires_grad_(),
        x,
        y,
        augment=augment,
        adversary=attack,
        beta=beta,
        generator=generator or noise(),
    )


def naive_attack(network, x, y, generator, eps, steps, size, objective):
    """Projected ascent, sample by sample, after one draw of the start for all."""
    theta = network.theta()
    start = torch.empty_like(x).uniform_(-1, 1, generator=generator) * eps
    out = []
    for i in range(len(x)):
        original = x[i : i + 1]
        point = (original + start[i : i + 1]).clamp(0, 1)
        for _ in range(steps):
            leaf = point.clone().requires_grad_()
            objective(network(theta, leaf), network(theta, original), y[i]).backward()
            moved = point + size * torch.sign(leaf.grad)
            point = torch.max(torch.min(moved, original + eps), original - eps).clamp(0, 1)
        out.append(point)
    return torch.cat(out)


def probabilities(logits):
    powers = [math.exp(float(z)) for z in logits]
    return [p / sum(powers) for p in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy(hard, _, label):
    return -torch.log(torch.softmax(hard, 1)[0, label])


def kl(hard, clean, _):
    p, q = torch.softmax(clean, 1), torch.softmax(hard, 1)
    return (p * (p.log() - q.log())).sum()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_losses_equal_the_papers_formulas_written_sample_by_sample(setting, flavour):
    network, x, y = setting
    theta, beta = network.theta(), 2.0
    if flavour == "fast":
        attack = {"eps": 0.1, "steps": 1, "size": 0.125}
    else:
        attack = {"eps": 0.1, "steps": 3, "size": 0.05}
    objective = kl if flavour == "trades" else cross_entropy
    attacked = naive_attack(network, x, y, noise(), objective=objective, **attack)
    total = 0.0
    for i in range(len(x)):
        label = int(y[i])
        clean = probabilities(network(theta, x[i : i + 1])[0])
        hard = probabilities(network(theta, attacked[i : i + 1])[0])
        others = max(p for k, p in enumerate(hard) if k != label)
        if flavour == "natural":
            total += -math.log(clean[label])
        elif flavour in ("pgd", "fast"):
            total += -math.log(hard[label])
        elif flavour == "trades":
            total += -math.log(clean[label]) + beta * divergence(clean, hard)
        else:
            boosted = -math.log(hard[label]) - math.log(1 - others)
            total += boosted + beta * (1 - clean[label]) * divergence(clean, hard)
    value = loss(setting, flavour, adversary(**attack), beta=beta)
    assert value.item() == pytest.approx(total / len(x), rel=1e-9)


def test_boosted_cross_entropy_of_hand_computed_probabilities():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
    # sample 0, label 0: -ln .5 - ln(1 - .3); sample 1, label 0: -ln .1 - ln(1 - .8)
    expected = (-math.log(0.5) - math.log(0.7) - math.log(0.1) - math.log(0.2)) / 2
    value = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_boosted_cross_entropy_stays_finite_when_another_class_is_certain():
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    value = boosted_cross_entropy(logits, torch.tensor([0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("flavour", ["pgd", "trades", "mart"])
def test_the_gradient_takes_the_examples_as_constants(setting, flavour):
    network, x, y = setting
    theta, attack = network.theta().requires_grad_(), adversary()
    value = adversarial_loss(
        flavour, network, theta, x, y, augment=None, adversary=attack, beta=2.0, generator=noise()
    )
    (gradient,) = torch.autograd.grad(value, theta)
    objective = kl if flavour == "trades" else cross_entropy
    fixed = naive_attack(network, x, y, noise(), 0.1, 3, 0.05, objective)
    other = network.theta().requires_grad_()
    hard, clean = network(other, fixed).log_softmax(1), network(other, x).log_softmax(1)
    pick = torch.arange(len(x)), y
    apart = (clean.exp() * (clean - hard)).sum(1)
    if flavour == "pgd":
        expected = -hard[pick].mean()
    elif flavour == "trades":
        expected = -clean[pick].mean() + 2 * apart.mean()
    else:
        rest = hard.exp().clone()
        rest[pick] = 0
        boosted = -hard[pick] - torch.log(1 - rest.amax(1))
        expected = (boosted + 2 * (1 - clean.exp()[pick]) * apart).mean()
    (wanted,) = torch.autograd.grad(expected, other)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_the_adversary_stays_in_the_ball_and_the_box_and_raises_the_loss(
    setting, norm, random_start
):
    network, x, y = setting
    x = x.clone()
    x[0, 0, 0], x[1, 0, 0] = 0.0, 1.0
    eps = 0.05 if norm == "Linf" else 0.5
    attack = adversary(norm, eps, steps=5, size=eps, random_start=random_start)

    def objective(point):
        return nn.functional.cross_entropy(network(network.theta(), point), y, reduction="sum")

    found = attack.maximise(objective, x, noise())
    assert float(attack.threat.distance(found, x).max()) <= eps * (1 + 1e-12)
    assert found.min() >= 0
    assert found.max() <= 1
    assert objective(found) > objective(x)
    assert not found.requires_grad


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_random_start_fills_the_ball_from_the_generator_alone(setting, norm):
    _, x, _ = setting
    before = torch.random.get_rng_state()
    attack = adversary(norm, 0.1, steps=0)
    one, two = (attack.maximise(lambda p: p.sum(), x, noise()) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, x)
    assert float(attack.threat.distance(one, x).max()) <= 0.1 * (1 + 1e-12)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_natural_training_draws_no_noise(setting):
    generator = noise()
    loss(setting, "natural", adversary(), generator)
    assert torch.equal(generator.get_state(), noise().get_state())


def test_the_adversary_sees_the_augmentation_of_the_batch(setting):
    network, x, y = setting
    gray = torch.zeros_like(x)
    seen = []

    def augment(features):
        seen.append(features.detach().clone())
        return features * 0 + gray

    value = loss(setting, "pgd", adversary(), augment=augment)
    # three steps of the attack and the loss itself; behind it all images are the same
    assert len(seen) == 4
    expected = nn.functional.cross_entropy(network(network.theta(), gray), y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_networks_see_pixels_that_the_preprocessing_then_changes(setting):
    network, x, y = setting
    scaled = FlatNetwork(nn.Sequential(Scale(), network.body))
    attack = adversary()
    one = loss((scaled, x, y), "pgd", attack)

    def objective(point):
        return nn.functional.cross_entropy(network(network.theta(), 3 * point), y, reduction="sum")

    found = attack.maximise(objective, x, noise())
    two = nn.functional.cross_entropy(network(network.theta(), 3 * found), y)
    assert one.item() == pytest.approx(two.item(), rel=1e-12)


def test_the_guard_measures_accuracy_under_pgd_and_tells_a_collapse(setting):
    network, x, _ = setting
    trained = network.theta()
    y = network(trained, x).argmax(1)
    guard = OverfittingGuard(network, x, y, ThreatModel("Linf", 0.0), seed=1)
    constant = torch.zeros_like(trained)
    constant[-K:] = torch.eye(K, dtype=torch.float64)[int((y[0] + 1) % K)]
    expected = float((y == (y[0] + 1) % K).double().mean())
    assert [guard.collapsed(t) for t in (constant, trained, constant)] == [False, False, True]
    assert guard.accuracies == pytest.approx([expected, 1.0, expected])
    wide = OverfittingGuard(network, x, y, ThreatModel("Linf", 0.5), seed=1)
    assert wide.measure(trained) < 1
    assert wide.measure(trained) == wide.measure(trained)


class Scale(nn.Module):
    def forward(self, x):
        return 3 * x


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_an_extended_box_never_pulls_an_image_back(setting, norm, random_start):
    """Pixels outside [0,1] may move both ways within their image's range, and nothing jumps."""
    network, inside, y = setting
    x = inside * 1.6 - 0.3
    theta = network.theta()
    strong = Adversary(
        threat=ThreatModel(norm, 0.1),
        steps=4,
        step_size=0.05,
        random_start=random_start,
        extend_box=True,
    )

    def objective(point):
        return nn.functional.cross_entropy(network(theta, point), y, reduction="sum")

    points = strong.maximise(objective, x, noise())
    delta = points - x
    lengths = delta.abs().amax((1, 2, 3)) if norm == "Linf" else delta.flatten(1).norm(dim=1)
    assert (lengths <= 0.1 + 1e-12).all()
    assert (lengths > 0.05).all()
    for image, point in zip(x, points, strict=True):
        assert float(point.min()) >= min(0.0, float(image.min()))
        assert float(point.max()) <= max(1.0, float(image.max()))
    outside = x > 1
    assert outside.any()
    assert (delta[outside] > 0).any()
    assert (delta[outside] < 0).any()


def test_on_images_in_the_unit_cube_the_extended_box_is_the_unit_cube(setting):
    values = []
    for extend in (False, True):
        strong = Adversary(
            threat=ThreatModel("Linf", 0.2), steps=3, step_size=0.1, extend_box=extend
        )
        values.append(loss(setting, "trades", strong))
    assert torch.equal(*values)


def test_the_loss_of_a_flat_network_is_that_of_any_model(setting):
    """Experts and students share the adversary and the losses."""
    network, x, y = setting
    theta = network.theta().requires_grad_()

    def model(point):
        return network(theta, point)

    for flavour in ("pgd", "trades", "mart"):
        attacked = attack_batch(flavour, model, x, y, adversary(), noise())
        value = robust_loss(flavour, model, x, attacked, y, 2.0)
        assert torch.equal(value, loss(setting, flavour, adversary()))
        assert theta.grad is None

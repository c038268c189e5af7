"""VMI-FGSM, Jitter and C&W in Linf: formulas written out, linear models, settings."""

import pytest
import torch
import torch.nn.functional as F
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
from robustdd_attacks.ascents.jitter import jitter_loss
from robustdd_attacks.common import margin
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.seeds import ExampleGenerator

NAMES = ["vmi-fgsm", "jitter", "cw-linf"]
SETTINGS = {
    "vmi-fgsm": {"neighbours": 2},
    "jitter": {"random_start": False, "std": 0.0},
    "cw-linf": {"random_start": False},
}


def norms_of(name):
    return ["Linf"] if name == "cw-linf" else ["Linf", "L2"]


CASES = [(name, norm) for name in NAMES for norm in norms_of(name)]


class WithOffset(nn.Module):
    """The logits of a linear problem with those of its two classes raised alike.

    Jitter sees the logits over the largest of them, and two that are each other's negative would
    always be 1 and -1.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[:, :2] + 5.0


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 8, 8), (3, 7, 5)])
@pytest.mark.parametrize("targeted", [False, True])
def test_half_survive_at_the_median_distance(name, norm, shape, targeted):
    problem = linear_problem(shape, norm)
    model = WithOffset(problem.model)
    labels = 1 - problem.labels if targeted else problem.labels
    for batch_size in (3, 16):
        found = perturb(
            make_attack(name, **SETTINGS[name]),
            model,
            problem.images,
            labels,
            ThreatModel(norm, problem.eps, targeted),
            batch_size=batch_size,
        )
        broken = model(found).argmax(1) != problem.labels
        assert torch.equal(broken, problem.distances <= problem.eps)


def network_problem(count=6):
    network = RowNetwork(9, 4, seed=3)
    images = torch.rand(count, 1, 3, 3, generator=rng(5), dtype=torch.float64)
    return network, images, network(images).detach().argmax(1)


class Last(nn.Module):
    """A network that keeps the last images it was shown."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        self.last = x.detach()
        return self.network(x)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_vmi_takes_the_steps_of_the_formula(norm, targeted):
    network, images, labels = network_problem()
    labels = (labels + 1) % 4 if targeted else labels
    threat, index = ThreatModel(norm, 0.3, targeted), torch.arange(6)
    model = Last(network)
    config = {"steps": 4, "neighbours": 3, "beta": 0.7, "decay": 0.8, "step_size": 0.1}
    make_attack("vmi-fgsm", **config).perturb(
        task_of(model, images, labels, threat, ExampleGenerator(2, index))
    )
    draws = ExampleGenerator(2, index)

    def gradient(x):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(network(x), labels, reduction="sum") * (-1 if targeted else 1)
        return torch.autograd.grad(loss, x)[0]

    def offset():
        radius = 0.7 * 0.3
        if norm == "Linf":
            return draws.uniform((1, 3, 3), -radius, radius, torch.float64)
        share = draws.uniform((1, 1, 1), dtype=torch.float64) ** (1 / 9)
        way = draws.normal((1, 3, 3), torch.float64)
        return radius * share * way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    x, g, v = images, torch.zeros_like(images), torch.zeros_like(images)
    for _ in range(4):
        here = gradient(x)
        tuned = here + v
        g = 0.8 * g + tuned / tuned.abs().mean((1, 2, 3), keepdim=True)
        v = sum(gradient(x + offset()) for _ in range(3)) / 3 - here
        way = g.sign() if norm == "Linf" else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x = threat.project(x + 0.1 * way, images)
    torch.testing.assert_close(model.last, x, rtol=0, atol=1e-10)


def test_vmi_without_a_neighbourhood_is_mim_bit_for_bit():
    task = trained_network()
    threat = ThreatModel("Linf", 0.1)
    found = [
        perturb(make_attack(name, **config), task.model, task.images, task.labels, threat)
        for name, config in (("mim", {}), ("vmi-fgsm", {"beta": 0.0}))
    ]
    assert float((found[0] != found[1]).flatten(1).any(1).double().mean()) < 0.05
    wrong = [task.model(x).argmax(1) != task.labels for x in found]
    assert torch.equal(*wrong)


def test_vmi_follows_gradients_that_float32_would_lose():
    # With logits 100 times as large the cross-entropy and its gradient are zero in float32.
    task = trained_network()

    class Sure(nn.Module):
        def forward(self, x):
            return 100 * task.model(x)

    threat, images, labels = ThreatModel("Linf", 0.1), task.images[:60], task.labels[:60]
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(Sure()(x), labels, reduction="sum"), x)
    assert int((gradient == 0).flatten(1).all(1).sum()) > 30
    found = perturb(make_attack("vmi-fgsm", neighbours=3), Sure(), images, labels, threat)
    plain = perturb(make_attack("mim"), Sure(), images, labels, threat)
    broken, by_mim = (int((task.model(x).argmax(1) != labels).sum()) for x in (found, plain))
    assert broken > 0.8 * by_mim > 20


@pytest.mark.parametrize("targeted", [False, True])
def test_the_loss_of_jitter_is_that_of_the_formula(targeted):
    logits = torch.randn(7, 5, generator=rng(1), dtype=torch.float64).requires_grad_()
    noise = 0.1 * torch.randn(7, 5, generator=rng(2), dtype=torch.float64)
    labels = torch.arange(7) % 5
    found = jitter_loss(logits, labels, noise, 10.0, targeted)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    for i in range(7):
        z = logits[i].detach().requires_grad_()
        p = torch.exp(10 * z / z.abs().max())
        p = p / p.sum() + noise[i]
        p = p - torch.eye(5, dtype=torch.float64)[labels[i]]
        loss = (p**2).sum() * (-1 if targeted else 1)
        loss.backward()
        torch.testing.assert_close(found[i], loss)
        torch.testing.assert_close(gradient[i], z.grad)


def test_jitter_takes_the_steps_of_the_formula_with_noise_drawn_anew():
    network, images, labels = network_problem()
    threat, index = ThreatModel("Linf", 0.3), torch.arange(6)
    model = Last(network)
    attack = make_attack("jitter", steps=5, step_size=0.07, std=0.2)
    attack.perturb(task_of(model, images, labels, threat, ExampleGenerator(2, index)))
    draws = ExampleGenerator(2, index)
    x = images + draws.uniform((1, 3, 3), -0.3, 0.3, torch.float64)
    x = x.clamp(0, 1)
    for _ in range(5):
        x = x.detach().requires_grad_()
        z = network(x)
        p = F.softmax(10 * z / z.abs().amax(1, keepdim=True), 1)
        p = p + 0.2 * draws.normal((4,), torch.float64)
        loss = (p - F.one_hot(labels, 4)).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x = (images + (x + 0.07 * gradient.sign() - images).clamp(-0.3, 0.3)).clamp(0, 1)
    torch.testing.assert_close(model.last, x.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_margin_is_the_lead_of_the_best_other_class(targeted):
    logits = torch.randn(6, 4, generator=rng(1), dtype=torch.float64)
    labels = torch.arange(6) % 4
    found = margin(logits, labels, targeted)
    for i, row in enumerate(logits.tolist()):
        own = row.pop(int(labels[i]))
        expected = max(row) - own
        assert float(found[i]) == pytest.approx(-expected if targeted else expected)


def test_cw_takes_the_steps_of_the_formula_until_kappa_is_crossed():
    network, images, labels = network_problem()
    threat, index = ThreatModel("Linf", 0.5), torch.arange(6)
    ends = {}
    for kappa in (0.3, 50.0):
        model = Last(network)
        attack = make_attack("cw-linf", steps=6, step_size=0.1, kappa=kappa)
        attack.perturb(task_of(model, images, labels, threat, ExampleGenerator(2, index)))
        start = ExampleGenerator(2, index).uniform((1, 3, 3), -0.5, 0.5, torch.float64)
        x = (images + start).clamp(0, 1)
        for _ in range(6):
            x = x.detach().requires_grad_()
            z = network(x)
            own = z[index, labels]
            other = z.masked_fill(F.one_hot(labels, 4).bool(), -1000.0).max(1).values
            loss = -torch.clamp(own - other + kappa, min=0).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            x = (images + (x + 0.1 * gradient.sign() - images).clamp(-0.5, 0.5)).clamp(0, 1)
        torch.testing.assert_close(model.last, x.detach(), rtol=0, atol=1e-10)
        ends[kappa] = model.last
    assert not torch.allclose(ends[0.3], ends[50.0])


def test_cw_in_l2_is_refused_in_one_line():
    network, images, labels = network_problem()
    with pytest.raises(UsageError, match=r"^CWLinf attacks in Linf only; choose cw for L2$"):
        perturb(make_attack("cw-linf"), network, images, labels, ThreatModel("L2", 0.1))


@pytest.mark.parametrize("name", NAMES)
def test_they_break_about_as_much_as_pgd_on_a_trained_network(name):
    task, threat = trained_network(), ThreatModel("Linf", 0.1)
    config = {"neighbours": 5} if name == "vmi-fgsm" else {}
    left = {
        other: float((task.model(x).argmax(1) == task.labels).double().mean())
        for other, settings in ((name, config), ("pgd", {}), ("fgsm", {}))
        for x in [
            perturb(make_attack(other, **settings), task.model, task.images, task.labels, threat)
        ]
    }
    assert left[name] <= left["fgsm"]
    assert left[name] <= left["pgd"] + 0.05


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vmi-fgsm", {"steps": 0}),
        ("vmi-fgsm", {"neighbours": 0}),
        ("vmi-fgsm", {"beta": -1.0}),
        ("vmi-fgsm", {"step_size": 0.0}),
        ("jitter", {"steps": 0}),
        ("jitter", {"scale": 0.0}),
        ("jitter", {"std": -0.1}),
        ("cw-linf", {"steps": 0}),
        ("cw-linf", {"kappa": -1.0}),
        ("cw-linf", {"relative_step": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(name, config):
    (key,) = config
    assert f"{key} " in refusal(name, **config)


def test_restarts_that_would_repeat_one_another_are_refused():
    told = refusal("cw-linf", restarts=2, random_start=False)
    assert "restarts differ only with random_start" in told
    told = refusal("jitter", restarts=2, random_start=False, std=0.0)
    assert "restarts differ only with random_start = true or std > 0" in told

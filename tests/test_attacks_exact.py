"""A tiny ReLU network has an exact robust accuracy, found by mixed-integer programming.

For each wrong class j, the largest z_j - z_y over the L-inf ball cut with [0,1] is the value of a
mixed-integer programme: a hidden unit max(0, a) with bounds l <= a <= u is
h >= a, h >= 0, h <= a - l (1 - d), h <= u d with d in {0,1} (Tjeng, Xiao, Tedrake 2019,
"Evaluating robustness of neural networks with mixed integer programming", section 4.1).
"""

from functools import cache

import numpy as np
import pytest
import torch
from attack_models import make_attack, registered_attacks, rng
from scipy.optimize import LinearConstraint, milp
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.evaluation.robustness import attack_student

COUNT, HIDDEN, CLASSES, EPS = 40, 8, 3, 0.25
STRONG = {"pgd": {"steps": 40, "restarts": 8}, "apgd-ce": {}, "apgd-t": {}, "autoattack": {}}
GAP = 1 / COUNT  # strong attacks may miss one example of the 40


@cache
def problem():
    """A 6-8-3 network taught for 150 steps to tell apart three random prototypes."""
    generator = rng(7)
    prototypes = torch.rand(CLASSES, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(COUNT) % CLASSES
    noise = torch.randn(COUNT, 6, generator=generator, dtype=torch.float64)
    images = (prototypes[labels] + 0.12 * noise).clamp(0, 1).view(COUNT, 1, 2, 3)
    first, second = nn.Linear(6, HIDDEN).double(), nn.Linear(HIDDEN, CLASSES).double()
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.mul_(0.6)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval(), images, labels


def largest_lead(model, image, label, rival, eps):
    """The largest z_rival - z_label over the ball; variables x (6), h (8), d (8)."""
    w, b = (p.detach().numpy() for p in model[1].parameters())
    v, c = (p.detach().numpy() for p in model[3].parameters())
    x = image.flatten().numpy()
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    centre, radius = (low + high) / 2, (high - low) / 2
    mid, spread = w @ centre + b, np.abs(w) @ radius
    lower, upper = np.minimum(mid - spread, 0), np.maximum(mid + spread, 0)
    one, zero = np.eye(HIDDEN), np.zeros((HIDDEN, HIDDEN))
    above = np.hstack([-w, one, zero])  # h - w x >= b
    below = np.hstack([-w, one, -np.diag(lower)])  # h - w x - l d <= b - l
    gate = np.hstack([np.zeros_like(w), one, -np.diag(upper)])  # h - u d <= 0
    objective = np.concatenate([np.zeros(6), v[label] - v[rival], np.zeros(HIDDEN)])
    found = milp(
        objective,
        constraints=[
            LinearConstraint(above, lb=b),
            LinearConstraint(below, ub=b - lower),
            LinearConstraint(gate, ub=np.zeros(HIDDEN)),
        ],
        bounds=(
            np.concatenate([low, np.zeros(2 * HIDDEN)]),
            np.concatenate([high, upper, np.ones(HIDDEN)]),
        ),
        integrality=np.repeat([0, 1], [6 + HIDDEN, HIDDEN]),
    )
    assert found.success, found.message
    return -found.fun + c[rival] - c[label], torch.from_numpy(found.x[:6]).view(image.shape)


@cache
def exact():
    """For each example the largest lead of a wrong class in the ball, and where it is reached."""
    model, images, labels = problem()
    rivals = [[j for j in range(CLASSES) if j != int(y)] for y in labels]
    leads, points = [], []
    for image, label, others in zip(images, labels, rivals, strict=True):
        best = max(
            (largest_lead(model, image, int(label), j, EPS) for j in others), key=lambda p: p[0]
        )
        leads.append(best[0])
        points.append(best[1])
    return torch.tensor(leads), torch.stack(points)


@cache
def robust_after(name, *config):
    """Who withstands an attack of these settings, as (name, value)."""
    model, images, labels = problem()
    attack = make_attack(name, **dict(config))
    return attack_student(model, images, labels, attack, ThreatModel("Linf", EPS), 0, COUNT).robust


def test_the_programme_agrees_with_the_network_at_its_own_optimum():
    model, images, labels = problem()
    leads, points = exact()
    logits = model(points)
    rivals = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
    own = logits.detach().gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(rivals - own, leads, rtol=0, atol=1e-5)
    assert (points - images).abs().max() <= EPS + 1e-9
    assert points.min() >= 0
    assert points.max() <= 1


def test_no_point_of_the_ball_beats_the_programme():
    model, images, labels = problem()
    leads, _ = exact()
    draws = EPS * (2 * torch.rand(500, *images.shape, generator=rng(8), dtype=torch.float64) - 1)
    logits = model((images + draws).clamp(0, 1).flatten(0, 1)).detach().view(500, COUNT, CLASSES)
    own = logits.gather(2, labels.expand(500, COUNT).unsqueeze(2)).squeeze(2)
    rivals = logits.scatter(2, labels.expand(500, COUNT).unsqueeze(2), -torch.inf).amax(2)
    assert ((rivals - own).amax(0) <= leads + 1e-6).all()


def test_the_problem_separates_strong_from_weak():
    leads, _ = exact()
    robust = int((leads < 0).sum())
    assert 8 <= robust <= 32
    assert leads.abs().min() > 1e-4  # rounding decides nothing


@pytest.mark.parametrize(
    "name", [name for name, kind in sorted(registered_attacks().items()) if "Linf" in kind.norms]
)
def test_no_attack_finds_what_does_not_exist(name):
    robust = robust_after(name)
    leads, _ = exact()
    assert not ((leads < 0) & ~robust).any()


@pytest.mark.parametrize("name", sorted(set(STRONG) & set(registered_attacks())))
def test_strong_attacks_find_what_exists(name):
    leads, _ = exact()
    missed = (leads > 0) & robust_after(name, *STRONG[name].items())
    assert int(missed.sum()) <= GAP * COUNT


def test_noise_misses_much_of_what_exists():
    leads, _ = exact()
    missed = (leads > 0) & robust_after("noise")
    assert int(missed.sum()) > GAP * COUNT


def test_the_optimum_itself_breaks_exactly_the_examples_that_are_not_robust():
    model, _, labels = problem()
    leads, points = exact()
    assert torch.equal(model(points).argmax(1) != labels, leads > 0)

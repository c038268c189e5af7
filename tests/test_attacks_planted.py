"""An adversarial example is planted where it provably exists; a strong attack has to find it.

Zimmermann, Brendel, Tramer, Carlini 2022, "Increasing confidence in adversarial robustness
evaluations", section 3: the features of a trained network stay, its head becomes a binary
discriminator for one image. Points inside the ball are class 0; one planted point on its edge is
class 1. An attack that does not find class 1 would not have found it in the defended network.
"""

import copy
from functools import cache

import pytest
import torch
from attack_models import make_attack, perturb, registered_attacks, rng, trained_network
from torch import nn

from robustdd_bench.attacks import RoutedModel, ThreatModel

COUNT, INNER, BOUNDARY = 40, 30, 30
EPS = {"Linf": 0.1, "L2": 0.6}
FLOOR = 0.95
WEAK = {"noise", "fgsm", "fgsm-targeted"}
"""Attacks that need not find it."""
ONE_NORM = {
    "ddn": ("L2",),
    "cw": ("L2",),
    "cw-targeted": ("L2",),
    "cw-linf": ("Linf",),
    "deepfool": (),
    "jitter": (),
}
"""Norms in which an attack is held to it; both where nothing is said. DeepFool stops at the first
crossing of a linear boundary and promises no convergence. Jitter divides the logits by the largest
of them: those of two classes that are each other's negative are then 1 and -1 everywhere."""
NORMS = ("Linf", "L2")

TESTED = [
    (name, norm)
    for name, kind in sorted(registered_attacks().items())
    for norm in ONE_NORM.get(name, NORMS)
    if kind.white_box and name not in WEAK
]


@cache
def features():
    return copy.deepcopy(trained_network().model[:-1]).double()


class Discriminator(nn.Module):
    """The frozen features of the trained network and a linear head of two classes."""

    def __init__(self, weight, bias):
        super().__init__()
        self.features = features()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        score = self.features(x) @ self.weight + self.bias
        return torch.stack([-score, score], 1)


class Discriminators(RoutedModel):
    """A discriminator for each row."""

    def __init__(self, models):
        self.models = models
        self.weight = torch.stack([model.weight.detach() for model in models])
        self.bias = torch.stack([model.bias.detach() for model in models])

    def __call__(self, x):
        score = (features()(x) * self.weight).sum(1) + self.bias
        return torch.stack([-score, score], 1)

    def select(self, keep):
        return Discriminators([self.models[i] for i in torch.arange(len(self.models))[keep]])


def inside(image, norm, count, radius, generator):
    draw = torch.randn(count, *image.shape, generator=generator, dtype=torch.float64)
    if norm == "Linf":
        draw = 2 * torch.rand(draw.shape, generator=generator, dtype=torch.float64) - 1
    else:
        draw = draw / draw.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (image + radius * draw).clamp(0, 1)


def edge(image, norm, generator):
    """A point on the edge of the ball; where a pixel would leave the box, it turns back."""
    eps = EPS[norm]
    delta = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    delta = delta.sign() if norm == "Linf" else delta / delta.norm()
    moved = image + eps * delta
    return image + eps * torch.where((moved < 0) | (moved > 1), -delta, delta)


@cache
def planted(norm):
    """For each image a discriminator, and the point that was planted."""
    generator = rng(11)
    cases = []
    for image in trained_network().images[:COUNT].double():
        point = edge(image, norm, generator)
        inner = inside(image, norm, INNER, EPS[norm] / 2, generator)
        boundary = inside(image, norm, BOUNDARY, EPS[norm], generator)
        clean = torch.cat([image.unsqueeze(0), inner, boundary])
        with torch.no_grad():
            hidden = features()(torch.cat([clean, point.unsqueeze(0)]))
        centred = hidden - hidden[0]
        target = torch.zeros(len(hidden), dtype=torch.float64)
        target[-1] = 1
        weights = torch.ones_like(target)
        weights[-1] = INNER + BOUNDARY  # the one point counts as much as all others
        ridge = 1e-3 * torch.eye(hidden.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(
            centred.T @ (weights.unsqueeze(1) * centred) + ridge, centred.T @ (weights * target)
        )
        response = centred @ weight
        # The boundary lies just below the planted point, above every other one.
        threshold = 0.8 * response[-1] + 0.2 * response[:-1].max()
        assert response[-1] > response[:-1].max()
        model = Discriminator(weight, -hidden[0] @ weight - threshold).eval()
        cases.append((model, image.unsqueeze(0), point.unsqueeze(0), clean))
    return cases


def share_found(attack, norm):
    """All images at once where the attack can; what it finds is judged one by one."""
    models, images, _, _ = zip(*planted(norm), strict=True)
    threat, zeros = ThreatModel(norm, EPS[norm]), torch.zeros(COUNT, dtype=torch.int64)
    if attack.routed:
        examples = perturb(attack, Discriminators(models), torch.cat(images), zeros, threat)
    else:
        alone = [
            perturb(attack, model, image, zeros[:1], threat, seed=place)
            for place, (model, image) in enumerate(zip(models, images, strict=True))
        ]
        examples = torch.cat(alone)
    found = 0
    for model, image, example in zip(models, images, examples.split(1), strict=True):
        assert threat.distance(example, image) <= threat.eps + 1e-9
        found += int(model(example).argmax(1))
    return found / COUNT


@pytest.mark.parametrize("norm", NORMS)
def test_the_planted_point_is_an_adversarial_example_in_the_ball_and_samples_are_not(norm):
    for model, image, point, clean in planted(norm):
        assert int(model(point).argmax(1)) == 1
        assert not model(clean).argmax(1).any()
        assert ThreatModel(norm, EPS[norm]).distance(point, image) <= EPS[norm] + 1e-9
        assert point.min() >= 0
        assert point.max() <= 1


@pytest.mark.parametrize(("name", "norm"), TESTED)
def test_a_strong_attack_finds_what_was_planted(name, norm):
    patience = {"cw": {"steps": 60, "binary_steps": 5}, "vmi-fgsm": {"neighbours": 5}}
    settings = patience.get(name.removesuffix("-targeted"), {})  # the rest is patience
    assert share_found(make_attack(name, **settings), norm) >= FLOOR


@pytest.mark.parametrize("norm", NORMS)
def test_noise_finds_next_to_nothing(norm):
    assert share_found(make_attack("noise"), norm) <= 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "broken",
    [
        {"steps": 1, "step_size": 1e-4, "random_start": False},
        {"steps": 1, "step_size": 1e-4},
        {"steps": 20, "step_size": 1e-4},
    ],
)
def test_a_broken_attack_does_not_find_it(norm, broken):
    assert share_found(make_attack("pgd", **broken), norm) < FLOOR / 2

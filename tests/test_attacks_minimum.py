"""Attacks of minimum norm: distances that are known, the box, students attacked together."""

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
from robustdd_attacks.minimum import Nearest
from torch import nn

from robustdd_bench.attacks import RoutedModel, ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import accuracy
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.seeds import ExampleGenerator

L2_ATTACKS = [
    ("ddn", {"steps": 200, "gamma": 0.03, "init_norm": 0.2}, 1.005),
    ("deepfool", {}, 1.021),
    ("cw", {"steps": 60}, 1.02),
]
SHAPES = [(1, 2, 3), (1, 8, 8), (3, 7, 5)]


def streams(count):
    return ExampleGenerator(0, torch.arange(count))


def minimise(name, problem, config=None, **options):
    attack = make_attack(name, **(config or {}))
    labels = options.pop("labels", problem.labels)
    return attack.minimise(problem.model, problem.images, labels, streams(len(labels)), **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "config", "most"), L2_ATTACKS)
def test_distance_to_a_plane_is_exact(name, config, most, shape):
    problem = linear_problem(shape, "L2")
    found = minimise(name, problem, config)
    assert found.success.all()
    assert (problem.model(found.adversarial).argmax(1) != problem.labels).all()
    ratio = found.distance / problem.distances
    assert ratio.min() > 0.9999
    assert ratio.max() < most
    measured = (found.adversarial - problem.images).flatten(1).norm(dim=1)
    torch.testing.assert_close(measured, found.distance)


@pytest.mark.parametrize("shape", SHAPES)
def test_deepfool_finds_the_linf_distance_to_a_plane(shape):
    problem = linear_problem(shape, "Linf", dtype=torch.float64)
    found = minimise("deepfool", problem, norm="Linf")
    torch.testing.assert_close(found.distance, 1.02 * problem.distances, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "config", "most"), [L2_ATTACKS[0], L2_ATTACKS[2]])
def test_a_target_is_reached_at_the_same_distance(name, config, most):
    problem = linear_problem((1, 8, 8), "L2")
    targets = 1 - problem.labels
    found = minimise(name, problem, config, labels=targets, targeted=True)
    assert (problem.model(found.adversarial).argmax(1) == targets).all()
    assert (found.distance / problem.distances).max() < most


@pytest.mark.parametrize(("name", "config", "most"), L2_ATTACKS)
@pytest.mark.parametrize(("batch_size", "count"), [(1, 6), (7, None)])
def test_half_survive_at_the_median_distance(name, config, most, batch_size, count):
    problem = linear_problem((1, 8, 8), "L2")
    outcome = attack_student(
        problem.model,
        problem.images[:count],
        problem.labels[:count],
        make_attack(name, **config),
        ThreatModel("L2", problem.eps),
        seed=0,
        batch_size=batch_size,
    )
    expected = problem.distances[:count] > problem.eps
    assert 0 < expected.sum() < len(expected)
    assert torch.equal(outcome.robust, expected)
    assert outcome.violations.examples == 0


@pytest.mark.parametrize(("name", "config", "most"), L2_ATTACKS)
def test_what_lies_beyond_eps_is_drawn_back_to_the_edge(name, config, most):
    problem = linear_problem((1, 8, 8), "L2")
    threat = ThreatModel("L2", 0.005)
    found = perturb(
        make_attack(name, **config), problem.model, problem.images, problem.labels, threat
    )
    torch.testing.assert_close(
        threat.distance(found, problem.images), torch.full((16,), 0.005), rtol=0, atol=1e-6
    )
    assert (problem.model(found).argmax(1) == problem.labels).all()


@pytest.mark.parametrize(("name", "config", "most"), L2_ATTACKS)
def test_a_misclassified_image_is_its_own_nearest_example(name, config, most):
    problem = linear_problem((1, 2, 3), "L2")
    found = minimise(name, problem, config, labels=1 - problem.labels)
    assert torch.equal(found.adversarial, problem.images)
    assert (found.distance == 0).all()


@pytest.mark.parametrize(("name", "config", "most"), L2_ATTACKS)
def test_a_constant_model_has_no_adversarial_example(name, config, most):
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0 + torch.tensor([2.0, 1.0, 0.0])

    images = torch.rand(4, 1, 2, 3, generator=rng())
    labels = torch.zeros(4, dtype=torch.long)
    found = make_attack(name, **config).minimise(Constant(), images, labels, streams(4))
    assert not found.success.any()
    assert found.distance.isinf().all()
    assert torch.equal(found.adversarial, images)


def black_and_white(count=12, size=16):
    """Images of black and white pixels only, and a plane whose nearest point lies in the box."""
    generator = rng(4)
    x = (torch.rand(count, size, generator=generator) < 0.5).float()
    w = (torch.rand(count, size, generator=generator) + 0.5) * (1 - 2 * x)  # into the box
    gap = 0.2 * w.norm(dim=1)

    class Planes(RoutedModel):
        """Row b has a plane of its own: w_b.(x - x_b) = .2 |w_b|."""

        def __init__(self, keep):
            self.keep = keep

        def __call__(self, images):
            rise = ((images.flatten(1) - x[self.keep]) * w[self.keep]).sum(1) - gap[self.keep]
            return torch.stack([-rise, rise, rise - 1e3], dim=1)

        def select(self, keep):
            return Planes(self.keep[keep])

    return Planes(torch.arange(count)), x.view(count, 1, 4, 4), torch.zeros(count).long()


@pytest.mark.parametrize(("name", "config", "most"), L2_ATTACKS)
def test_pixels_that_are_exactly_black_or_white_move(name, config, most):
    model, images, labels = black_and_white()
    found = make_attack(name, **config).minimise(model, images, labels, streams(12))
    assert found.success.all()
    assert ((found.adversarial - images).abs() > 0.01).all()
    torch.testing.assert_close(found.distance, torch.full((12,), 0.2), rtol=most - 1, atol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_deepfool_goes_round_pixels_that_the_box_holds(norm):
    # Half of the pixels are white and would have to become whiter still.
    images = torch.full((1, 1, 2, 4), 0.5)
    images[..., :2] = 1.0
    linear = nn.Linear(8, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([torch.zeros(8), torch.ones(8)]))
        linear.bias.copy_(torch.tensor([6.4, 0.0]))
    model = nn.Sequential(nn.Flatten(), linear)
    found = make_attack("deepfool").minimise(
        model, images, torch.tensor([0]), streams(1), norm=norm
    )
    # The four free pixels have to rise by .4 in all.
    expected = 1.02 * (0.1 if norm == "Linf" else 0.4 / 2)
    torch.testing.assert_close(found.distance, torch.tensor([expected]), rtol=1e-4, atol=0)


class Students(RoutedModel):
    """Rows of several networks, and a note of what was selected."""

    def __init__(self, networks, owner):
        self.networks, self.owner = networks, owner

    def __call__(self, images):
        assert len(images) == len(self.owner)
        stacked = torch.stack([network(images) for network in self.networks])
        return stacked[self.owner, torch.arange(len(images))]

    def select(self, keep):
        return Students(self.networks, self.owner[keep])


@pytest.mark.parametrize(
    ("name", "norm"), [("ddn", "L2"), ("cw", "L2"), ("deepfool", "L2"), ("deepfool", "Linf")]
)
def test_students_attacked_together_give_what_each_gives_alone(name, norm):
    config = {"cw": {"steps": 20, "binary_steps": 3}, "ddn": {"steps": 20}}.get(
        name, {"check_every": 1}
    )
    networks = [RowNetwork(16, 4, seed=seed) for seed in range(3)]
    images = torch.rand(5, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    labels = torch.stack([network(images).argmax(1) for network in networks])
    attack = make_attack(name, **config)
    owner, index = torch.arange(3).repeat_interleave(5), torch.arange(5).repeat(3)
    order = torch.randperm(15, generator=rng(5))
    owner, index = owner[order], index[order]
    together = attack.minimise(
        Students(networks, owner),
        images[index],
        labels[owner, index],
        ExampleGenerator(0, index),
        norm=norm,
    )
    alone = [
        attack.minimise(network, images, own, streams(5), norm=norm)
        for network, own in zip(networks, labels, strict=True)
    ]
    distances = torch.stack([found.distance for found in alone])
    assert together.success.any()
    torch.testing.assert_close(together.distance, distances[owner, index])


def test_deepfool_gives_the_same_whenever_it_drops_what_is_done():
    task = trained_network()
    images, labels = task.images[:40], task.labels[:40]
    found = [
        make_attack("deepfool", check_every=every).minimise(task.model, images, labels, streams(40))
        for every in (0, 1, 3)
    ]
    assert found[0].success.all()
    for other in found[1:]:
        torch.testing.assert_close(other.distance, found[0].distance)


def test_deepfool_with_every_class_considered_finds_the_nearest_boundary_of_a_linear_model():
    # The classes differ in the length of their weights, so the likeliest is not always nearest.
    generator = rng(8)
    linear = nn.Linear(16, 12)
    with torch.no_grad():
        lengths = torch.linspace(0.2, 3, 12).unsqueeze(1)
        linear.weight.copy_(torch.randn(12, 16, generator=generator) * lengths)
        linear.bias.copy_(-0.5 * linear.weight.sum(1) + 0.3 * torch.randn(12, generator=generator))
    model = nn.Sequential(nn.Flatten(), linear)
    images = 0.5 + 0.01 * torch.randn(20, 1, 4, 4, generator=generator)
    logits = model(images).detach()
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels.unsqueeze(1)) - logits
    slopes = (linear.weight[labels].unsqueeze(1) - linear.weight).norm(dim=2).detach()
    own = labels.unsqueeze(1) == torch.arange(12)
    nearest = (gaps / slopes).masked_fill(own, torch.inf).amin(1)
    every = make_attack("deepfool", candidates=0).minimise(model, images, labels, streams(20))
    likeliest = make_attack("deepfool", candidates=2).minimise(model, images, labels, streams(20))
    assert (nearest < 0.4).any()
    inside = nearest < 0.4  # away from the box
    torch.testing.assert_close(every.distance[inside], 1.02 * nearest[inside], rtol=1e-3, atol=0)
    assert (likeliest.distance[inside] >= every.distance[inside] - 1e-4).all()
    assert likeliest.distance[inside].sum() > every.distance[inside].sum()


def test_ddn_is_the_strongest_of_the_three_on_a_trained_network():
    task = trained_network()
    images, labels = task.images[:60], task.labels[:60]
    left, mean = {}, {}
    for name, config in [("ddn", {}), ("cw", {"steps": 60}), ("deepfool", {})]:
        attack = make_attack(name, **config)
        mean[name] = float(attack.minimise(task.model, images, labels, streams(60)).distance.mean())
        outcome = attack_student(task.model, images, labels, attack, ThreatModel("L2", 0.6), 0, 64)
        left[name] = accuracy(outcome.robust)
    assert left["ddn"] <= left["cw"] <= left["deepfool"] < 0.5
    assert mean["ddn"] < mean["cw"] < mean["deepfool"]
    noise = attack_student(
        task.model, images, labels, make_attack("noise"), ThreatModel("L2", 0.6), 0, 64
    )
    assert left["deepfool"] < accuracy(noise.robust)


def test_margin_kappa_is_crossed():
    problem = linear_problem((1, 8, 8), "L2")
    config = {"steps": 60, "kappa": 0.1}
    found = minimise("cw", problem, config)
    assert found.success.all()
    logits = problem.model(found.adversarial)
    side = 1 - 2 * problem.labels
    crossed = side * (logits[:, 1] - logits[:, 0])
    assert crossed.min() >= 0.0999
    assert crossed.max() < 0.12


@pytest.mark.parametrize("name", ["ddn", "cw"])
def test_a_norm_that_is_not_known_is_refused_in_one_line(name):
    problem = linear_problem((1, 2, 3), "Linf")
    with pytest.raises(UsageError, match=r"^(DDN|CW) minimises L2 only; choose another attack"):
        perturb(
            make_attack(name),
            problem.model,
            problem.images,
            problem.labels,
            ThreatModel("Linf", 0.1),
        )


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ddn", {"steps": 0}),
        ("ddn", {"gamma": 1.0}),
        ("ddn", {"init_norm": 0.0}),
        ("ddn", {"last_step": 2.0}),
        ("deepfool", {"steps": 0}),
        ("deepfool", {"overshoot": -0.1}),
        ("deepfool", {"candidates": 1}),
        ("deepfool", {"check_every": -1}),
        ("cw", {"steps": 0}),
        ("cw", {"binary_steps": 0}),
        ("cw", {"initial_c": 0.0}),
        ("cw", {"learning_rate": 0.0}),
        ("cw", {"kappa": -1.0}),
    ],
)
def test_settings_out_of_range_are_refused(name, config):
    (key,) = config
    assert f"{key} " in refusal(name, **config)


def test_the_nearest_successful_candidate_is_kept_and_nan_never_is():
    nearest = Nearest(torch.zeros(3, 1, 1, 1))

    def offer(values, success, distances, places=None):
        nearest.offer(
            torch.tensor(values).view(-1, 1, 1, 1),
            torch.tensor(success),
            torch.tensor(distances),
            places,
        )

    offer([0.5, 0.5, 0.5], [True, False, True], [0.5, 0.5, 0.5])
    offer([0.7, float("nan"), 0.2], [True, True, True], [0.7, float("nan"), 0.2])
    offer([0.1], [True], [0.1], torch.tensor([2]))
    adversarial, distance, success = nearest.result()
    assert adversarial.flatten().tolist() == pytest.approx([0.5, 0.0, 0.1])
    assert distance.tolist() == pytest.approx([0.5, float("inf"), 0.1])
    assert success.tolist() == [True, False, True]

"""FAB-T: exact projections, exact distances, targets one after another."""

import itertools

import pytest
import torch
from attack_models import (
    RowNetwork,
    Students,
    linear_problem,
    make_attack,
    perturb,
    refusal,
    rng,
    task_of,
    trained_network,
)
from robustdd_attacks.fab.projections import to_hyperplane
from scipy.optimize import linprog, minimize
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.seeds import ExampleGenerator

SHAPES = [(1, 1, 1), (1, 2, 3), (1, 8, 8), (3, 7, 5)]
NORMS = ["Linf", "L2"]


def streams(count):
    return ExampleGenerator(0, torch.arange(count))


def hyperplanes(count=12, pixels=5):
    """Points with pixels at 0 and 1, normals with zeros, gaps of both signs, one out of reach."""
    generator = rng(2)
    x = (1.4 * torch.rand(count, pixels, generator=generator, dtype=torch.float64) - 0.2).clamp(
        0, 1
    )
    w = torch.randn(count, pixels, generator=generator, dtype=torch.float64)
    w[::3, 1] = 0
    goal = torch.rand(count, pixels, generator=generator, dtype=torch.float64)
    gap = (w * (goal - x)).sum(1)
    gap[-1] = 100.0
    return x, w, gap


def reachable(x, w, gap):
    room = torch.where(w * gap.sign().unsqueeze(1) > 0, 1 - x, x)
    return (w.abs() * room).sum(1) >= gap.abs()


def test_the_linf_projection_is_that_of_a_linear_programme():
    x, w, gap = hyperplanes()
    step = to_hyperplane(x, w, gap, "Linf")
    can = reachable(x, w, gap)
    assert can[:-1].all()
    for i in can.nonzero().flatten().tolist():
        size = x.shape[1]
        # Variables d and t: minimise t with |d_j| <= t.
        eye, ones = torch.eye(size, dtype=torch.float64), torch.ones(size, 1, dtype=torch.float64)
        above = torch.cat([torch.cat([eye, -ones], 1), torch.cat([-eye, -ones], 1)])
        found = linprog(
            c=[0] * size + [1],
            A_ub=above.numpy(),
            b_ub=[0] * (2 * size),
            A_eq=[[*w[i].tolist(), 0]],
            b_eq=[float(gap[i])],
            bounds=[*((-float(v), 1 - float(v)) for v in x[i]), (0, None)],
        )
        assert found.success
        assert float(step[i].abs().max()) == pytest.approx(found.fun, abs=1e-9)
        assert float((w[i] * step[i]).sum()) == pytest.approx(float(gap[i]), abs=1e-9)


def test_the_l2_projection_is_that_of_a_quadratic_programme():
    x, w, gap = hyperplanes()
    step = to_hyperplane(x, w, gap, "L2")
    for i in reachable(x, w, gap).nonzero().flatten().tolist():
        normal, wanted = w[i].numpy(), float(gap[i])
        found = minimize(
            lambda d: d @ d,
            step[i].numpy() * 0,
            jac=lambda d: 2 * d,
            bounds=[(-float(v), 1 - float(v)) for v in x[i]],
            constraints={
                "type": "eq",
                "fun": lambda d, n=normal, c=wanted: n @ d - c,
                "jac": lambda d, n=normal: n,
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success
        torch.testing.assert_close(step[i], torch.from_numpy(found.x), rtol=0, atol=1e-5)
        assert float(step[i] @ step[i]) <= found.fun + 1e-8
        assert float((w[i] * step[i]).sum()) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_stays_in_the_box_and_goes_to_its_end_where_the_plane_is_out_of_reach(norm):
    x, w, gap = hyperplanes()
    there = x + to_hyperplane(x, w, gap, norm)
    assert there.min() >= -1e-12
    assert there.max() <= 1 + 1e-12
    moving = w[-1] != 0
    torch.testing.assert_close(there[-1][moving], (w[-1] > 0).double()[moving])
    still = to_hyperplane(x, torch.zeros_like(w), gap, norm)
    assert torch.equal(still, torch.zeros_like(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_distance_to_a_plane_is_exact(norm, shape, targeted):
    problem = linear_problem(shape, norm, dtype=torch.float64)
    labels = 1 - problem.labels if targeted else problem.labels
    attack = make_attack("fab-t", steps=60, eta=1.0001, beta=0.5, targets=1)
    found = attack.minimise(
        problem.model, problem.images, labels, streams(16), norm=norm, targeted=targeted
    )
    assert found.success.all()
    assert ((problem.model(found.adversarial).argmax(1) == labels) == targeted).all()
    ratio = found.distance / problem.distances
    assert ratio.min() > 1 - 1e-9
    assert ratio.max() < 1.0002
    default = make_attack("fab-t").minimise(
        problem.model, problem.images, problem.labels, streams(16), norm=norm
    )
    assert (default.distance / problem.distances).max() < 1.01


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_is_taken_into_account(norm):
    # Half of the pixels are white and would have to become whiter still; four have to rise by .4.
    images = torch.full((1, 1, 2, 4), 0.5, dtype=torch.float64)
    images[..., :2] = 1.0
    linear = nn.Linear(8, 2, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([torch.zeros(8), torch.ones(8)]))
        linear.bias.copy_(torch.tensor([6.4, 0.0]))
    model = nn.Sequential(nn.Flatten(), linear)
    found = make_attack("fab-t", eta=1.0001).minimise(
        model, images, torch.tensor([0]), streams(1), norm=norm
    )
    expected = torch.tensor([0.1 if norm == "Linf" else 0.2], dtype=torch.float64)
    torch.testing.assert_close(found.distance, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch_size", [3, 16])
def test_half_survive_at_the_median_distance(norm, batch_size):
    problem = linear_problem((1, 8, 8), norm)
    found = perturb(
        make_attack("fab-t", targets=2, steps=20),
        problem.model,
        problem.images,
        problem.labels,
        ThreatModel(norm, problem.eps),
        batch_size=batch_size,
    )
    broken = problem.model(found).argmax(1) != problem.labels
    assert torch.equal(broken, problem.distances <= problem.eps)


def naive_step(network, image, x, label, target, norm, alpha_max, eta):
    """One step of the search, for one example, written out in float64."""
    x = x.detach().requires_grad_()
    logits = network(x.unsqueeze(0))[0]
    (w,) = torch.autograd.grad(logits[target] - logits[label], x)
    f, w = (logits[target] - logits[label]).detach(), w.flatten()

    def project(point):
        b = float((w * x.detach().flatten()).sum() - f) - float((w * point.flatten()).sum())
        low, high = 0.0, 1e6  # the level, by bisection
        way = w.sign() * (1 if b >= 0 else -1)
        room = torch.where(way > 0, 1 - point.flatten(), point.flatten())
        for _ in range(200):
            level = (low + high) / 2
            free = torch.full_like(w, level) if norm == "Linf" else level * w.abs()
            length = torch.minimum(free, room)
            low, high = (level, high) if float((w.abs() * length).sum()) < abs(b) else (low, level)
        return (way * length).view_as(point)

    near, far = project(x.detach()), project(image)
    size = {"Linf": lambda d: d.abs().max(), "L2": lambda d: d.norm()}[norm]
    a = min(float(size(near) / (size(near) + size(far))), alpha_max)
    moved = (1 - a) * (x.detach() + eta * near) + a * (image + eta * far)
    return moved.clamp(0, 1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_search_is_that_of_the_formula(norm):
    network = RowNetwork(9, 4, seed=2)
    images = torch.rand(5, 1, 3, 3, generator=rng(5), dtype=torch.float64)
    labels = network(images).argmax(1)
    wrong = network(images).scatter(1, labels.unsqueeze(1), -torch.inf)
    target = wrong.argmax(1)
    attack = make_attack("fab-t", steps=12, targets=1)
    found = attack.minimise(network, images, labels, streams(5), norm=norm)
    threat = ThreatModel(norm, 0.0)
    for i in range(5):
        x, nearest = images[i], float("inf")
        for _ in range(12):
            x = naive_step(network, images[i], x, labels[i], target[i], norm, 0.1, 1.05)
            if int(network(x.unsqueeze(0)).argmax(1)) != int(labels[i]):
                nearest = min(nearest, float(threat.distance(x[None], images[i][None])))
                x = images[i] + 0.9 * (x - images[i])
        assert nearest < float("inf")
        assert float(found.distance[i]) == pytest.approx(nearest, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_more_targets_and_restarts_find_nothing_farther(norm):
    task = trained_network()
    images, labels = task.images[:25], task.labels[:25]
    found = [
        make_attack("fab-t", steps=6, **config).minimise(
            task.model, images, labels, streams(25), norm=norm
        )
        for config in ({"targets": 1}, {"targets": 5}, {"targets": 5, "restarts": 2})
    ]
    for fewer, more in itertools.pairwise(found):
        assert (more.distance <= fewer.distance).all()
    assert (found[1].distance < found[0].distance).any()


def test_within_eps_it_stops_with_an_example_and_without_an_eps_it_does_not():
    task = trained_network()
    images, labels = task.images[:40], task.labels[:40]
    shown = 0

    def model(x):
        nonlocal shown
        shown += len(x)
        return task.model(x)

    attack, costs = make_attack("fab-t", steps=5), {}
    for eps in (0.0, 0.1, 1.0):
        shown = 0
        attack.perturb(task_of(model, images, labels, ThreatModel("Linf", eps), streams(40)))
        costs[eps] = shown
    shown = 0
    attack.minimise(model, images, labels, streams(40), norm="Linf")
    whole = 40 + 40 * 9 * 2 * 5
    assert shown == whole
    assert costs[1.0] < costs[0.1] < costs[0.0] < whole  # what was wrong before is left alone


@pytest.mark.parametrize("norm", NORMS)
def test_students_attacked_together_give_what_each_gives_alone(norm):
    networks = [RowNetwork(16, 4, seed=seed) for seed in range(3)]
    images = torch.rand(5, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    labels = torch.stack([network(images).argmax(1) for network in networks])
    attack = make_attack("fab-t", steps=6, restarts=2)
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
        attack.minimise(network, images, own, streams(5), norm=norm).distance
        for network, own in zip(networks, labels, strict=True)
    ]
    torch.testing.assert_close(together.distance, torch.stack(alone)[owner, index])


def test_a_misclassified_image_is_its_own_nearest_example():
    problem = linear_problem((1, 2, 3), "L2")
    found = make_attack("fab-t").minimise(
        problem.model, problem.images, 1 - problem.labels, streams(16)
    )
    assert torch.equal(found.adversarial, problem.images)
    assert (found.distance == 0).all()


@pytest.mark.parametrize(
    "config",
    [
        {"steps": 0},
        {"targets": 0},
        {"restarts": 0},
        {"alpha_max": 1.5},
        {"eta": 0.9},
        {"beta": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(config):
    (key,) = config
    assert f"{key} " in refusal("fab-t", **config)

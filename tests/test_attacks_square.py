"""Square: its schedule, its squares, parity of its moves with naive loops, and what it breaks."""

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
    task_of,
    trained_network,
)
from robustdd_attacks import square
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.seeds import ExampleGenerator

NORMS = ["Linf", "L2"]

each_norm = pytest.mark.parametrize("norm", NORMS)


def problem_of(images, threat, seed=0):
    labels = torch.zeros(len(images), dtype=torch.long)
    generator = ExampleGenerator(seed, torch.arange(len(images)))
    return task_of(None, images, labels, threat, generator)


def test_the_share_is_halved_as_in_the_paper_for_any_number_of_queries():
    at = [1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999]
    assert [square.halvings(i, 10000) for i in at] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert [square.halvings(i, 5000) for i in (5, 6, 26, 4001)] == [0, 1, 2, 9]
    assert [square.halvings(i, 100) for i in (1, 2, 3)] == [2, 2, 3]


def test_sides_shrink_and_never_exceed_the_image():
    size = torch.Size([8, 8])
    sides = [square.side_of(0.8 / 2**k, size, "Linf") for k in range(10)]
    assert sides == [7, 5, 4, 3, 2, 1, 1, 1, 1, 1]
    assert [square.side_of(0.8 / 2**k, size, "L2") for k in range(4)] == [7, 5, 5, 3]
    assert square.side_of(0.8, torch.Size([1, 10]), "Linf") == 1
    assert square.side_of(0.8, torch.Size([2, 3]), "L2") == 2


@pytest.mark.parametrize("side", [1, 3, 5])
def test_squares_start_everywhere_alike_the_last_place_included(side):
    # Excluding the last place, as the authors' code does, leaves the last row and column alone.
    height, width, count = 5, 7, 6000
    draws = ExampleGenerator(0, torch.arange(count)).integers((2,), 2**31)
    _, _, inside = square._square(draws, torch.Size([height, width]), side)
    assert (inside.flatten(1).sum(1) == side**2).all()
    rows = inside[:, 0].any(2).float().argmax(1)
    columns = inside[:, 0].any(1).float().argmax(1)
    for first, extent in ((rows, height), (columns, width)):
        places = extent - side + 1
        share = torch.bincount(first, minlength=places) / count
        assert len(share) == places
        slack = 5 * math.sqrt(1 / places / count)
        torch.testing.assert_close(share, torch.full((places,), 1 / places), rtol=0, atol=slack)
    assert inside[:, 0, -1].any()
    assert inside[:, 0, :, -1].any()


def test_linf_moves_a_square_to_the_faces_of_the_ball_and_nothing_else():
    images = torch.rand(9, 3, 5, 6, generator=rng(1), dtype=torch.float64)
    threat = ThreatModel("Linf", 0.1)
    held = threat.project(images + 0.05, images)
    moved = square.move_linf(problem_of(images, threat), held, 3)
    draws = ExampleGenerator(0, torch.arange(9)).integers((5,), 2**31).tolist()
    for i in range(9):
        expected = held[i].clone()
        row, column = draws[i][0] * 3 // 2**31, draws[i][1] * 4 // 2**31
        for channel in range(3):
            sign = 1 if draws[i][2 + channel] >= 2**30 else -1
            for r in range(row, row + 3):
                for c in range(column, column + 3):
                    expected[channel, r, c] = images[i, channel, r, c] + sign * 0.1
        torch.testing.assert_close(moved[i], expected.clamp(0, 1), rtol=0, atol=1e-15)


def naive_pyramid(height, width):
    """Squares around the middle, each a ring wider and 1/(t+1)^2 high, laid on each other."""
    bump = torch.zeros(height, width, dtype=torch.float64)
    for t in range(max(height, width) // 2 + 1):
        for r in range(height):
            for c in range(width):
                if max(abs(r - height // 2), abs(c - width // 2)) <= t:
                    bump[r, c] += 1 / (t + 1) ** 2
    return bump / bump.norm()


@pytest.mark.parametrize("side", [2, 3, 5, 7])
def test_pyramids_are_two_of_opposite_sign_and_of_norm_one(side):
    upright, turned = square.pyramids(side, torch.zeros(1, dtype=torch.float64))
    top = side // 2
    pair = torch.cat([naive_pyramid(top, side), -naive_pyramid(side - top, side)])
    torch.testing.assert_close(upright, pair / pair.norm())
    assert torch.equal(turned, upright.T)


def test_l2_moves_norm_between_squares_as_algorithm_3_says():
    images = 0.5 + 0.1 * torch.rand(12, 3, 6, 7, generator=rng(1), dtype=torch.float64)
    threat, side = ThreatModel("L2", 0.4), 3
    noise = torch.randn(images.shape, generator=rng(2), dtype=torch.float64)
    held = images + 0.3 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    pair = square.pyramids(side, images)
    moved = square.move_l2(problem_of(images, threat), held, pair)
    draws = ExampleGenerator(0, torch.arange(12)).integers((8,), 2**31).tolist()
    for i, draw in enumerate(draws):
        nu = (held[i] - images[i]).clone()
        unused = threat.eps**2 - float(nu.square().sum())
        rows = [draw[0] * 4 // 2**31, draw[2] * 4 // 2**31]
        columns = [draw[1] * 5 // 2**31, draw[3] * 5 // 2**31]
        one, two = (
            (slice(r, r + side), slice(c, c + side)) for r, c in zip(rows, columns, strict=True)
        )
        bump = pair[int(draw[4] >= 2**30)]
        for channel in range(3):
            sign = 1 if draw[5 + channel] >= 2**30 else -1
            layer = nu[channel]
            both = torch.zeros_like(layer)
            both[one], both[two] = 1, 1
            free = math.sqrt(float((layer * both).square().sum()) + unused / 3)
            new = sign * bump + layer[one] / layer[one].norm()
            layer[two] = 0
            layer[one] = new / new.norm() * free
        torch.testing.assert_close(moved[i], images[i] + nu, rtol=0, atol=1e-13)
        assert float(nu.norm()) == pytest.approx(threat.eps)


def test_the_starts_are_stripes_and_a_grid_of_tiles():
    images = torch.full((20, 3, 11, 12), 0.5, dtype=torch.float64)
    stripes = square.stripes(problem_of(images, ThreatModel("Linf", 0.1))) - images
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    torch.testing.assert_close(stripes.abs(), torch.full_like(stripes, 0.1))
    assert 0.4 < (stripes > 0).double().mean() < 0.6
    tiles = square.tiles(problem_of(images, ThreatModel("L2", 0.3))) - images
    torch.testing.assert_close(
        tiles.flatten(1).norm(dim=1), torch.full((20,), 0.3, dtype=torch.float64)
    )
    assert (tiles[:, :, -1] == 0).all()  # five tiles of two rows, and one row left over
    assert (tiles[:, :, :-1] != 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (1, 8, 8), (3, 7, 5)])
@pytest.mark.parametrize("targeted", [False, True])
def test_half_survive_at_the_median_distance_of_a_linear_model(shape, targeted):
    problem = linear_problem(shape, "Linf")
    labels = 1 - problem.labels if targeted else problem.labels
    threat = ThreatModel("Linf", problem.eps, targeted)
    found = perturb(
        make_attack("square", queries=1000), problem.model, problem.images, labels, threat
    )
    broken = problem.model(found).argmax(1) != problem.labels
    assert torch.equal(broken, problem.distances <= problem.eps)


def test_in_l2_too_where_one_direction_is_all_there_is():
    problem = linear_problem((1, 1, 1), "L2")
    found = perturb(
        make_attack("square", queries=20),
        problem.model,
        problem.images,
        problem.labels,
        ThreatModel("L2", problem.eps),
    )
    broken = problem.model(found).argmax(1) != problem.labels
    assert torch.equal(broken, problem.distances <= problem.eps)


def test_l2_comes_close_to_a_linear_model_and_never_claims_too_much():
    # Squares have at least three pixels a side, so that on small images not every direction can
    # be reached; at 1.6 times the distance it is.
    problem = linear_problem((1, 8, 8), "L2")
    found = perturb(
        make_attack("square", queries=600),
        problem.model,
        problem.images,
        problem.labels,
        ThreatModel("L2", problem.eps),
    )
    broken = problem.model(found).argmax(1) != problem.labels
    assert not broken[problem.distances > problem.eps].any()
    assert broken[1.6 * problem.distances <= problem.eps].all()


def test_the_last_row_and_column_are_reached():
    class Corner(nn.Module):
        """Only the last pixel counts."""

        def forward(self, x):
            last = x[:, 0, -1, -1] - 0.59
            return torch.stack([-last, last], 1)

    images = torch.full((12, 1, 8, 8), 0.5, dtype=torch.float64)
    labels, threat = torch.zeros(12, dtype=torch.long), ThreatModel("Linf", 0.1)
    attack = make_attack("square", queries=100, p_init=1 / 64)
    found = perturb(attack, Corner(), images, labels, threat)
    assert Corner()(found).argmax(1).sum() > 6


@each_norm
def test_when_the_broken_leave_changes_nothing(norm, monkeypatch):
    model = RowNetwork(16, 4)
    images = torch.rand(16, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    labels = model(images).argmax(1)
    threat = ThreatModel(norm, {"Linf": 0.05, "L2": 0.25}[norm])
    found = []
    for every in (1, 7, 1000):
        monkeypatch.setattr(square, "PRUNE_EVERY", every)
        attack = make_attack("square", queries=25, restarts=2)
        found.append(perturb(attack, model, images, labels, threat))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    broken = int((model(found[0]).argmax(1) != labels).sum())
    assert 0 < broken < 16


@each_norm
def test_queries_are_counted_and_the_broken_leave(norm):
    model = RowNetwork(16, 4)
    images = torch.rand(16, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    labels = model(images).argmax(1)
    passes = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    threat = ThreatModel(norm, {"Linf": 0.05, "L2": 0.25}[norm])
    perturb(make_attack("square", queries=250), model, images, labels, threat)
    assert len(passes) == 250
    assert set(passes[:100]) == {16}
    assert passes == sorted(passes, reverse=True)
    assert 0 < passes[100] < 16
    passes.clear()
    perturb(make_attack("square", queries=250), model, images, labels, ThreatModel(norm, 5.0))
    assert passes == [16] * 100


@each_norm
def test_more_queries_and_restarts_break_more_and_large_logits_hide_nothing(norm):
    task = trained_network()
    clean = task.model(task.images).argmax(1) == task.labels
    images, labels = task.images[clean], task.labels[clean]
    threat = ThreatModel(norm, {"Linf": 0.12, "L2": 0.8}[norm])

    def count(model, **config):
        found = perturb(make_attack("square", **config), model, images, labels, threat)
        return int((model(found).argmax(1) != labels).sum())

    once = count(task.model, queries=40)
    assert 0 < once < count(task.model, queries=40, restarts=3)
    assert once < count(task.model, queries=200)
    assert abs(count(lambda x: 1000 * task.model(x), queries=40) - once) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries must be at least 1, not 0"),
        ({"p_init": 0.0}, "p_init must be more than 0, not 0.0"),
        ({"p_init": 1.5}, "p_init must be at most 1, not 1.5"),
        ({"restarts": 0}, "restarts must be at least 1, not 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    assert refusal("square", **options) == message

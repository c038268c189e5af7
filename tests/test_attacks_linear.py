"""On linear models the exact robust accuracy is known: |w.x + b| / |w|_dual is the distance."""

import pytest
import torch
from attack_models import linear_problem, make_attack, perturb, quick_attack

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.evaluation.outcomes import accuracy
from robustdd_bench.evaluation.robustness import attack_student

SHAPES = [(1, 1, 1), (1, 2, 3), (1, 8, 8), (3, 7, 5), (3, 32, 32)]
EXACT = {
    "fgsm": ("fgsm", {}),
    "pgd": ("pgd", {"random_start": False}),
    "pgd-one-step": ("pgd", {"random_start": False, "steps": 1}),
    "mim": ("mim", {}),
}


def exact(label):
    name, config = EXACT[label]
    return make_attack(name, **config)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", EXACT)
def test_half_survive_at_the_median_distance(name, norm, shape):
    problem = linear_problem(shape, norm)
    for batch_size in (1, 3, 8):
        outcome = attack_student(
            problem.model,
            problem.images,
            problem.labels,
            exact(name),
            ThreatModel(norm, problem.eps),
            seed=0,
            batch_size=batch_size,
        )
        assert outcome.attacked == 16
        assert accuracy(outcome.robust) == 0.5
        assert torch.equal(outcome.robust, problem.distances > problem.eps)
        assert outcome.violations.examples == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", EXACT)
def test_half_reach_their_target_at_the_median_distance(name, norm, shape):
    problem = linear_problem(shape, norm)
    targets, threat = 1 - problem.labels, ThreatModel(norm, problem.eps, targeted=True)
    for batch_size in (1, 3, 8):
        found = perturb(
            exact(name), problem.model, problem.images, targets, threat, batch_size=batch_size
        )
        reached = problem.model(found).argmax(1) == targets
        assert torch.equal(reached, problem.distances <= problem.eps)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", EXACT)
def test_the_edge_of_the_ball_is_reached_to_nine_digits(name, norm):
    problem = linear_problem(
        (1, 8, 8), norm, nearest=0.03, farthest=0.03 * (1 + 4e-9), dtype=torch.float64
    )
    threat = ThreatModel(norm, problem.eps)
    found = perturb(exact(name), problem.model, problem.images, problem.labels, threat)
    broken = problem.model(found).argmax(1) != problem.labels
    assert torch.equal(broken, problem.distances <= problem.eps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-t"])
def test_random_starts_get_there_too(name, norm, shape, targeted):
    problem = linear_problem(shape, norm)
    labels = 1 - problem.labels if targeted else problem.labels
    threat = ThreatModel(norm, problem.eps, targeted)
    attack = make_attack(name, steps=25)
    found = perturb(attack, problem.model, problem.images, labels, threat, batch_size=8)
    broken = problem.model(found).argmax(1) != problem.labels
    assert torch.equal(broken, problem.distances <= problem.eps)


def test_pgd_from_a_random_start_turns_only_so_far_in_l2():
    # Each step of .125 eps turns the perturbation towards w by about .125 sin(angle): from a right
    # angle, tan(angle / 2) falls to exp(-2.5), and cos(angle) to .987, however many steps there
    # are. With steps that add up to 6 eps nothing is lost.
    problem = linear_problem((3, 32, 32), "L2", nearest=0.04, farthest=0.04)
    projection = {}
    for relative_step in (2.5, 6.0):
        attack = make_attack("pgd", relative_step=relative_step, steps=40)
        found = perturb(
            attack, problem.model, problem.images, problem.labels, ThreatModel("L2", 0.03)
        )
        w = problem.model[1].weight[0].detach()
        moved = ((found - problem.images).flatten(1) @ (w / w.norm())).abs()
        projection[relative_step] = float(moved.mean()) / 0.03
    assert projection[2.5] == pytest.approx(0.987, abs=0.003)
    assert projection[6.0] > 0.9999


def test_an_absolute_step_that_is_too_short_does_not_arrive():
    problem = linear_problem((1, 8, 8), "Linf")
    short = make_attack("pgd", random_start=False, steps=4, step_size=problem.eps / 10)
    long = make_attack("pgd", random_start=False, steps=4, step_size=problem.eps / 4)
    threat = ThreatModel("Linf", problem.eps)
    moved = [
        threat.distance(
            perturb(attack, problem.model, problem.images, problem.labels, threat), problem.images
        )
        for attack in (short, long)
    ]
    torch.testing.assert_close(moved[0], torch.full((16,), 0.4 * problem.eps), rtol=0, atol=1e-6)
    torch.testing.assert_close(moved[1], torch.full((16,), problem.eps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    "name", ["noise", "fgsm", "pgd", "mim", "apgd-ce", "apgd-dlr", "apgd-t", "square"]
)
def test_accuracy_never_rises_with_eps(name, norm):
    problem = linear_problem((1, 4, 4), norm)
    counts = []
    for eps in (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.08):
        found = perturb(
            quick_attack(name),
            problem.model,
            problem.images,
            problem.labels,
            ThreatModel(norm, eps),
        )
        counts.append(int((problem.model(found).argmax(1) == problem.labels).sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 16
    assert counts[-1] < 16

"""Our PGD and foolbox's leave the same robust accuracy on the trained digits network.

Run it with `make parity`: foolbox lives in an environment of its own, not in the tests' one.
"""

import importlib.util

import pytest
import torch
from attack_models import make_attack, trained_network
from sklearn.datasets import load_digits

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.evaluation.outcomes import accuracy
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student

STEPS = 40
CLOSE = 0.005
SEEDS = range(5)


def ours(model, images, labels, norm, eps, seed):
    attack = make_attack("pgd", steps=STEPS)
    outcome = attack_student(model, images, labels, attack, ThreatModel(norm, eps), seed, 512)
    return accuracy(outcome.robust)


def foolbox_pgd(model, images, labels, norm, eps, seed):
    import foolbox

    attacks = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}
    attack = attacks[norm](rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _, found, _ = attack(wrapped, images, labels, epsilons=eps)
    right = classified(model, images, labels, 512) & classified(model, found, labels, 512)
    return accuracy(right)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox uses old names of scipy
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("Linf", 0.1), ("L2", 0.3), ("L2", 0.6)])
def test_robust_accuracy_is_that_of_foolbox(norm, eps):
    if importlib.util.find_spec("foolbox") is None:
        pytest.skip("`make parity` installs foolbox")
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target)
    arguments = (trained_network().model, images, labels, norm, eps)
    means = []
    for run in (ours, foolbox_pgd):
        values = [run(*arguments, seed) for seed in SEEDS]
        means.append(sum(values) / len(values))
        print(f"{run.__name__} {norm} eps {eps:g}: {means[-1]:.4f}, seeds {values}")
    assert 0.02 < means[1] < 0.95
    assert means[0] == pytest.approx(means[1], abs=CLOSE)

"""GSAM, the average of images, TESLA's gradient and DATM's steps are those of the published codes.

The figures come from `scripts/compare_trajectories.py`, which runs those codes; ours are computed
here, in float64, on the same tensors.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from robustdd_datm.distiller import DATM

from robustdd_bench.toolkit.trajectories.gsam import gsam_gradient
from robustdd_bench.toolkit.trajectories.learned import Learned
from robustdd_bench.toolkit.trajectories.rules import Rules
from robustdd_bench.toolkit.trajectories.starting import Experts
from robustdd_bench.toolkit.trajectories.unroll import (
    Step,
    adjoint_gradients,
    matching_loss,
    unrolled_gradients,
)

ROOT = Path(__file__).resolve().parents[1]
PEERS = json.loads((ROOT / "docs/studies/tesla-gradient.json").read_text("utf-8"))["peers"]
CLOSE = 1e-9


def load_script():
    path = ROOT / "scripts" / "compare_trajectories.py"
    spec = importlib.util.spec_from_file_location("compare_trajectories", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture
def problem():
    return script.PeerProblem()


def same(tensor, figures):
    return script.digest(tensor) == pytest.approx(figures, rel=CLOSE, abs=CLOSE)


def test_the_figures_name_the_commits_that_they_come_from():
    assert set(PEERS["commits"]) == {"ftd", "datm", "tesla"}
    assert all(len(commit) == 40 for commit in PEERS["commits"].values())


@pytest.mark.parametrize("way", ["adaptive", "plain"])
def test_steps_of_gsam_are_those_of_ftds_code(problem, way):
    def loss_and_gradient(theta):
        leaf = theta.detach().requires_grad_()
        loss = F.cross_entropy(problem.network(leaf, problem.images), problem.labels)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    theta, losses = problem.start, []
    for _ in range(script.ITERATIONS):
        loss, gradient = gsam_gradient(
            loss_and_gradient,
            theta,
            rho=script.RHO,
            alpha=script.GSAM_ALPHA,
            adaptive=way == "adaptive",
        )
        losses.append(float(loss))
        theta = theta - script.RATE * gradient
    assert losses == pytest.approx(PEERS["ftd"][way]["losses"], rel=CLOSE)
    assert same(theta - problem.start, PEERS["ftd"][way]["moved"])


def test_the_average_of_images_is_that_of_ftds_code(problem):
    rules = Rules(image_ema=script.DECAY)
    config = DATM.Config(
        image_optimiser="sgd", image_lr=1.0, image_momentum=0.0, alpha_optimiser="sgd",
        learn_labels=False,
    )  # fmt: skip
    images, labels = problem.images.clone(), problem.labels
    learned = Learned(config, images, labels, script.CLASSES, {}, rules)
    arguments = (problem.network, images, labels, torch.tensor(0.1), problem.start)
    some = adjoint_gradients(*arguments, matching_loss(problem.start, problem.target), [Step()])
    for k in range(script.ITERATIONS):
        move = -script.wave(images.shape, 20 + k)
        learned.step(some.__class__(some.loss, move, None, some.alpha, some.theta))
    assert same(learned.reported, PEERS["ftd"]["average"])


def gradients(problem, indices, labels, *, alpha=None, images=None, naive=False, **options):
    compute = unrolled_gradients if naive else adjoint_gradients
    return compute(
        problem.network,
        problem.images if images is None else images,
        labels,
        torch.tensor(script.ALPHA, dtype=torch.float64) if alpha is None else alpha,
        problem.start,
        matching_loss(problem.start, problem.target),
        [Step(torch.tensor(index)) for index in indices],
        **options,
    )


def test_the_direct_gradient_is_teslas_but_for_the_half_that_its_code_drops(problem):
    figures = PEERS["tesla"]
    ours = gradients(problem, figures["indices"], problem.labels, direct=True)
    assert float(ours.loss) == pytest.approx(figures["loss"], rel=CLOSE)
    assert float(ours.alpha) == pytest.approx(figures["alpha"], rel=CLOSE)
    assert same(ours.images / 2, figures["images"])


def test_teslas_gradient_is_not_that_of_the_loss(problem):
    figures = PEERS["tesla"]
    exact = gradients(problem, figures["indices"], problem.labels, naive=True)
    assert not same(exact.images / 2, figures["images"])
    assert not same(exact.images, figures["images"])


def test_the_window_grows_as_in_datms_code():
    found = iter(PEERS["datm"]["bounds"])
    for first, last, end in script.SCHEDULE:
        rules = Rules(first_start_epochs=first, growth_iterations=end)
        for it in range(0, end + 2, max(1, end // 20)):
            assert [it, rules.start_bound(it, last)] == next(found)
    assert next(found, None) is None


def test_labels_start_from_the_logits_of_those_experts_that_are_right_as_in_datms_code(problem):
    class Known:
        """Gives the logits that it is given as weights."""

        def __call__(self, theta, images):
            return theta

    weights = [lambda k=k: problem.expert_logits[k] for k in range(4)]
    experts = Experts(Known(), torch.nn.Identity(), weights)
    fallback = torch.zeros(script.IMAGES, script.CLASSES, dtype=torch.float64)
    started = experts.mean_logits(problem.images, problem.labels, fallback)
    assert same(started, PEERS["datm"]["started"])


@pytest.mark.parametrize("name", script.LIMITS)
def test_steps_of_images_labels_and_rate_are_those_of_datms_code(problem, name):
    figures = PEERS["datm"]["steps"][name]
    config = DATM.Config(
        image_optimiser="sgd", image_lr=script.RATES["images"],
        image_momentum=script.MOMENTUM["images"], alpha_optimiser="sgd", alpha_space="linear",
        alpha_init=script.ALPHA, alpha_lr=script.RATES["alpha"],
        alpha_momentum=script.MOMENTUM["alpha"], label_lr=script.RATES["labels"],
        label_momentum=script.MOMENTUM["labels"], loss_limit=script.LIMITS[name],
    )  # fmt: skip
    rules = DATM(config).rules()
    alpha = {"alpha": torch.tensor(script.ALPHA, dtype=torch.float64)}
    learned = Learned(
        config, problem.images.clone(), problem.labels, script.CLASSES, alpha, rules,
        problem.logits,
    )  # fmt: skip
    losses = []
    for indices in figures["indices"]:
        made = gradients(
            problem, indices, learned.labels, images=learned.images, alpha=learned.alpha
        )
        losses.append(float(made.loss))
        learned.step(made)
    assert losses == pytest.approx(figures["losses"], rel=CLOSE)
    assert same(learned.images, figures["images"])
    assert same(learned.alpha, figures["alpha"])
    assert same(learned.state()["labels"], figures["labels"])

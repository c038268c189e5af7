import math

import pytest
import torch
from robustdd_mtt.distiller import MTT

from robustdd_bench.toolkit.trajectories.learned import Learned, label_logits
from robustdd_bench.toolkit.trajectories.unroll import Gradients

K = 3
LABELS = torch.tensor([0, 1, 2, 0])


def learned(tensors=None, **changes):
    config = MTT.Config(**({"image_optimiser": "sgd", "image_lr": 1.0} | changes))
    images = torch.zeros(4, 1, 2, 2)
    return Learned(config, images, LABELS, K, tensors or {})


def gradients(alpha=0.0, labels=None, images=0.0):
    return Gradients(
        loss=torch.tensor(1.0),
        images=torch.full((4, 1, 2, 2), images),
        labels=labels,
        alpha=torch.tensor(alpha),
        theta=torch.zeros(1),
    )


def test_alpha_by_the_papers_rule_is_sgd_with_momentum_on_alpha_itself():
    one = learned(alpha_space="linear", alpha_optimiser="sgd", alpha_lr=0.01, alpha_init=0.5)
    # v = 2, alpha = .5 - .02; v = .5 * 2 + 4 = 5, alpha = .48 - .05
    seen = []
    for gradient in (2.0, 4.0):
        one.step(gradients(alpha=gradient))
        seen.append(float(one.alpha))
    assert seen == pytest.approx([0.48, 0.43])


def test_in_log_space_a_step_of_sgd_is_relative():
    one = learned(alpha_space="log", alpha_optimiser="sgd", alpha_lr=0.1, alpha_init=0.5)
    one.step(gradients(alpha=2.0))
    # d loss / d log alpha = 2 * .5
    assert float(one.alpha) == pytest.approx(0.5 * math.exp(-0.1))


def test_in_log_space_adam_moves_by_its_rate():
    one = learned(alpha_lr=0.1, alpha_init=0.5)
    one.step(gradients(alpha=1e-3))
    assert float(one.alpha) == pytest.approx(0.5 * math.exp(-0.1), rel=1e-4)


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("gradient", [1e20, -1e20])
def test_alpha_stays_positive_and_at_most_one(space, optimiser, gradient):
    one = learned(alpha_space=space, alpha_optimiser=optimiser, alpha_lr=100.0)
    for sign in (1, 1, -1, 1):
        one.step(gradients(alpha=sign * gradient))
        assert 1e-6 * 0.999 <= float(one.alpha) <= 1
    # and it can come back from the edge
    one = learned(alpha_space=space, alpha_optimiser="sgd", alpha_lr=100.0, alpha_momentum=0.0)
    one.step(gradients(alpha=1e9))
    edge = float(one.alpha)
    one.step(gradients(alpha=-1e9))
    assert float(one.alpha) > edge


def test_learned_labels_start_as_confident_hard_labels():
    soft = label_logits(LABELS, K, 0.9).softmax(1)
    expected = torch.full((4, K), 0.05)
    expected[torch.arange(4), LABELS] = 0.9
    torch.testing.assert_close(soft, expected)
    one = learned(learn_labels=True, label_confidence=0.9)
    torch.testing.assert_close(one.labels, expected)


def test_labels_stay_hard_unless_they_are_learned():
    one = learned()
    one.step(gradients(images=1.0))
    assert torch.equal(one.labels, LABELS)


def test_the_gradient_of_logits_is_that_of_the_labels_through_softmax():
    one = learned(learn_labels=True)
    logits = label_logits(LABELS, K, 0.9).requires_grad_()
    weights = torch.randn(4, K, generator=torch.Generator().manual_seed(0))
    (logits.softmax(1) * weights).sum().backward()
    one.step(gradients(labels=weights))
    # A tenth of the first gradient is Adam's first moment.
    torch.testing.assert_close(one.state()["optimiser-labels.exp_avg"], 0.1 * logits.grad)


def test_learned_labels_stay_distributions():
    one = learned(learn_labels=True, label_lr=5.0)
    for k in range(5):
        source = torch.Generator().manual_seed(k)
        one.step(gradients(labels=torch.randn(4, K, generator=source)))
        labels = one.labels
        assert (labels >= 0).all()
        torch.testing.assert_close(labels.sum(1), torch.ones(4))


def test_images_move_by_their_own_sgd():
    one = learned(image_lr=2.0, image_momentum=0.5)
    one.step(gradients(images=1.0))
    one.step(gradients(images=1.0))
    # -2 * 1 - 2 * 1.5
    assert torch.equal(one.images, torch.full((4, 1, 2, 2), -5.0))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_state_goes_on_where_it_was_left(optimiser):
    options = {
        "learn_labels": True,
        "alpha_optimiser": optimiser,
        "image_optimiser": optimiser,
        "alpha_init": 0.5,
    }
    labels = torch.randn(4, K, generator=torch.Generator().manual_seed(0))
    whole = learned(**options)
    for _ in range(3):
        whole.step(gradients(0.3, labels, 0.1))
    first = learned(**options)
    first.step(gradients(0.3, labels, 0.1))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = learned(state, **options)
    for _ in range(2):
        second.step(gradients(0.3, labels, 0.1))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name

import dataclasses

import pytest
import torch
from torch import nn

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.dsa import FAMILIES, Augmentation, apply
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.unroll import (
    Step,
    adjoint_gradients,
    matching_loss,
    unrolled_gradients,
)

CLASSES, IMAGES, STEPS = 3, 6, 5


@dataclasses.dataclass
class Problem:
    body: nn.Module
    network: FlatNetwork
    images: torch.Tensor
    labels: torch.Tensor
    alpha: torch.Tensor
    start: torch.Tensor
    target: torch.Tensor

    def arguments(self):
        outer = matching_loss(self.start, self.target)
        return self.network, self.images, self.labels, self.alpha, self.start, outer


def problem(soft=False, channels=2, body=None):
    """A student of a few weights, everything in float64."""
    source = torch.Generator().manual_seed(7)
    with isolated_rng(3):
        body = body or convnet((channels, 8, 8), CLASSES, depth=2, width=4)
    network = FlatNetwork(nn.Sequential(nn.Identity(), body.double()))
    images = torch.randn(IMAGES, channels, 8, 8, generator=source, dtype=torch.float64)
    if soft:
        labels = torch.rand(IMAGES, CLASSES, generator=source, dtype=torch.float64)
        labels = labels / labels.sum(1, keepdim=True)
    else:
        labels = torch.arange(IMAGES) % CLASSES
    start = network.theta()
    target = start + 0.05 * torch.randn(start.shape, generator=source, dtype=torch.float64)
    alpha = torch.tensor(0.05, dtype=torch.float64)
    return Problem(body, network, images, labels, alpha, start, target)


def steps(strategy="none", batch=None, count=STEPS):
    source = torch.Generator().manual_seed(11)
    augmentation, made = Augmentation.parse(strategy), []
    for _ in range(count):
        index = None if batch is None else torch.randperm(IMAGES, generator=source)[:batch]
        drawn = augmentation.draw(batch or IMAGES, (8, 8), source)
        made.append(Step(index, lambda x, drawn=drawn: apply(x, drawn)))
    return made


def relative(a, b):
    return float((a - b).norm() / b.norm())


def assert_equal(fast, naive):
    assert relative(fast.loss, naive.loss) < 1e-12
    assert relative(fast.theta, naive.theta) < 1e-12
    assert relative(fast.images, naive.images) < 1e-8
    assert relative(fast.alpha, naive.alpha) < 1e-8
    assert (fast.labels is None) == (naive.labels is None)
    if naive.labels is not None:
        assert relative(fast.labels, naive.labels) < 1e-8


@pytest.mark.parametrize("keep", [0, 2, STEPS, 100])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [None, 4])
def test_the_adjoint_equals_full_unrolling(keep, momentum, soft, batch):
    p, taken = problem(soft), steps(batch=batch)
    fast = adjoint_gradients(*p.arguments(), taken, momentum=momentum, keep=keep)
    assert_equal(fast, unrolled_gradients(*p.arguments(), taken, momentum=momentum))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [None, 4])
def test_it_does_so_behind_every_family_of_augmentation(family, batch):
    p, taken = problem(soft=True), steps(family, batch)
    fast = adjoint_gradients(*p.arguments(), taken, momentum=0.9, keep=1)
    assert_equal(fast, unrolled_gradients(*p.arguments(), taken, momentum=0.9))


def test_it_does_so_over_many_steps_of_mixed_augmentation():
    p, taken = problem(), steps("_".join(FAMILIES), 4, count=40)
    assert_equal(
        adjoint_gradients(*p.arguments(), taken, keep=7), unrolled_gradients(*p.arguments(), taken)
    )


def test_an_image_that_is_in_a_batch_twice_gets_both_gradients():
    p = problem()
    taken = [Step(torch.tensor([0, 0, 3])), Step(torch.tensor([3, 1, 0]))]
    fast = adjoint_gradients(*p.arguments(), taken)
    assert_equal(fast, unrolled_gradients(*p.arguments(), taken))
    assert (fast.images[[2, 4, 5]] == 0).all()


def test_it_takes_any_differentiable_outer_loss():
    p = problem()
    real = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def outer(theta):
        return nn.functional.cross_entropy(p.network(theta, real), torch.tensor([0, 1, 2, 0]))

    arguments = (*p.arguments()[:-1], outer)
    assert_equal(adjoint_gradients(*arguments, steps()), unrolled_gradients(*arguments, steps()))


def train(body, images, labels, alpha, momentum, count):
    """The student as anyone would train it: a module and torch's own optimiser."""
    optimiser = torch.optim.SGD(body.parameters(), lr=float(alpha), momentum=momentum)
    for _ in range(count):
        optimiser.zero_grad()
        nn.functional.cross_entropy(body(images), labels).backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in body.parameters()])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_agree_with_finite_differences_of_a_plain_training_loop(momentum):
    with isolated_rng(5):
        # Smooth, so that differences are not taken across a kink.
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, CLASSES))
    p = problem(soft=True, channels=1, body=body)
    count, h = 4, 1e-5
    taken = [Step()] * count
    exact = adjoint_gradients(*p.arguments(), taken, momentum=momentum)

    def value(images, labels, alpha):
        p.network.load(p.start)
        end = train(p.body, images, labels, alpha, momentum, count)
        return float(matching_loss(p.start, p.target)(end))

    assert value(p.images, p.labels, p.alpha) == pytest.approx(float(exact.loss), rel=1e-12)
    slope = (value(p.images, p.labels, p.alpha + h) - value(p.images, p.labels, p.alpha - h)) / (
        2 * h
    )
    assert float(exact.alpha) == pytest.approx(slope, rel=1e-6)
    for name, gradient in (("images", exact.images), ("labels", exact.labels)):
        tensor = getattr(p, name)
        for position in (0, 7, 11):
            move = torch.zeros_like(tensor)
            move.view(-1)[position] = h
            up, down = (
                value(
                    *[t + sign * move if t is tensor else t for t in (p.images, p.labels)], p.alpha
                )
                for sign in (1, -1)
            )
            assert float(gradient.flatten()[position]) == pytest.approx(
                (up - down) / (2 * h), rel=1e-5, abs=1e-9
            )


def test_the_end_of_training_is_that_of_a_plain_training_loop():
    p = problem()
    end = adjoint_gradients(*p.arguments(), [Step()] * 6, momentum=0.9).theta
    p.network.load(p.start)
    expected = train(p.body, p.images, p.labels, p.alpha, 0.9, 6)
    torch.testing.assert_close(end, expected)


def test_no_steps_at_all_leave_the_start():
    p = problem()
    result = adjoint_gradients(*p.arguments(), [])
    assert torch.equal(result.theta, p.start)
    assert result.loss == 1
    assert result.alpha == 0
    assert not result.images.any()


def test_the_matching_loss_of_hand_computed_vectors():
    loss = matching_loss(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]))
    # |(3,0) - (3,4)|^2 / |(0,0) - (3,4)|^2
    assert float(loss(torch.tensor([3.0, 0.0]))) == pytest.approx(16 / 25)
    assert float(loss(torch.tensor([3.0, 4.0]))) == 0
    assert float(loss(torch.tensor([0.0, 0.0]))) == 1


def test_nothing_given_is_changed_and_nothing_returned_hangs_on_a_graph():
    p = problem(soft=True)
    before = [t.clone() for t in (p.images, p.labels, p.alpha, p.start)]
    result = adjoint_gradients(*p.arguments(), steps(), momentum=0.9, keep=2)
    for now, then in zip((p.images, p.labels, p.alpha, p.start), before, strict=True):
        assert torch.equal(now, then)
        assert not now.requires_grad
    for field in dataclasses.fields(result):
        assert not getattr(result, field.name).requires_grad

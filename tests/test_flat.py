import pytest
import torch
from torch import nn

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.preprocessing import Normalise
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast.flat import FlatNetwork


def network(seed=0):
    with isolated_rng(seed):
        body = convnet((1, 8, 8), 3, depth=2, width=4)
    return nn.Sequential(Normalise((0.3,), (0.4,)), body).double()


@pytest.fixture
def x():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_at_its_own_parameters_it_is_the_network(x):
    plain = network()
    flat = FlatNetwork(plain)
    torch.testing.assert_close(flat(flat.theta(), x), plain(x))


def test_its_gradient_is_the_networks(x):
    plain, labels = network(), torch.tensor([0, 1, 2, 0, 1])
    flat = FlatNetwork(plain)
    theta = flat.theta().requires_grad_()
    nn.functional.cross_entropy(flat(theta, x), labels).backward()
    nn.functional.cross_entropy(plain(x), labels).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(theta.grad, expected)


def test_theta_is_a_copy_of_every_parameter():
    plain = network()
    flat = FlatNetwork(plain)
    theta = flat.theta()
    assert theta.shape == (flat.size,) == (sum(p.numel() for p in plain.parameters()),)
    theta.zero_()
    assert all(p.abs().sum() > 0 for p in plain[1][0].parameters())


def test_other_parameters_are_another_network_and_can_be_written_back(x):
    one, two = network(1), network(2)
    flat = FlatNetwork(one)
    theta = FlatNetwork(two).theta()
    torch.testing.assert_close(flat(theta, x), two(x))
    flat.load(theta)
    assert torch.equal(one(x), two(x))


def test_the_body_keeps_its_own_parameters_also_after_an_error(x):
    flat = FlatNetwork(network())
    before = list(flat.body.parameters())
    flat(flat.theta() + 1, x)
    with pytest.raises(RuntimeError):
        flat(flat.theta() + 1, x[:, :, :4])
    assert all(a is b for a, b in zip(flat.body.parameters(), before, strict=True))


def test_it_is_torchs_functional_call_also_where_layers_share_a_parameter(x):
    plain = network()
    layers = plain[1]
    shared = nn.Conv2d(4, 4, 3, padding=1).double()
    layers[4] = shared
    layers.insert(8, shared)
    layers.insert(9, nn.Conv2d(4, 4, 3, padding=1).double())
    layers[9].weight = shared.weight
    flat, other = FlatNetwork(plain), FlatNetwork(plain)
    theta = (flat.theta() + 0.1).requires_grad_()
    # Torch's function leaves such a body with parameters that are no longer shared.
    expected = torch.func.functional_call(other.body, other.parameters(theta), (plain[0](x),))
    assert torch.equal(flat(theta, x), expected)
    assert flat.body[9].weight is flat.body[4].weight
    gradients = [torch.autograd.grad(y.sum(), theta)[0] for y in (flat(theta, x), expected)]
    assert torch.equal(*gradients)


def test_another_body_is_noticed(x):
    flat, other = FlatNetwork(network(1)), FlatNetwork(network(2))
    theta = flat.theta()
    expected = flat(theta, x)
    flat.body = other.body
    assert torch.equal(flat(theta, x), expected)


def test_augmentation_acts_between_preprocessing_and_network(x):
    plain = network()
    flat = FlatNetwork(plain)
    torch.testing.assert_close(
        flat(flat.theta(), x, lambda z: 2 * z.flip(3)), plain[1](2 * plain[0](x).flip(3))
    )


def test_running_statistics_are_refused():
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="running statistics"):
        FlatNetwork(nn.Sequential(nn.Identity(), body))


def test_a_network_without_a_preprocessing_layer_is_refused():
    with pytest.raises(ValueError, match="preprocessing, network"):
        FlatNetwork(nn.Linear(2, 2))

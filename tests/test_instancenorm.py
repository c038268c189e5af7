import pytest
import torch
from torch import nn

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast.instancenorm import InstanceNorm, with_fast_norm

SHAPES = [(2, 3, 4, 4), (1, 5, 8, 2), (3, 1, 2, 2), (2, 3, 1, 1)]


def pair(channels, dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(channels, channels).to(dtype)
    with torch.no_grad():
        norm.weight.normal_(generator=source)
        norm.bias.normal_(generator=source)
    return norm, InstanceNorm(norm)


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_first_derivatives_are_group_norms_bit_for_bit(shape):
    results = []
    for module in pair(shape[1], torch.float32):
        x = draw(*shape, dtype=torch.float32).requires_grad_()
        y = module(x)
        d = draw(*shape, seed=2, dtype=torch.float32)
        results.append((y, *torch.autograd.grad(y, (x, module.weight, module.bias), d)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_second_derivatives_equal_those_of_torchs_decomposition(shape, offset):
    results = []
    channels = shape[1]
    for module in pair(channels):
        x = (draw(*shape) + offset).requires_grad_()
        d = draw(*shape, seed=2).requires_grad_()
        first = torch.autograd.grad(
            module(x), (x, module.weight, module.bias), d, create_graph=True
        )
        cotangents = draw(*shape, seed=3), draw(channels, seed=4), draw(channels, seed=5)
        results.append(torch.autograd.grad(first, (d, x, module.weight), cotangents))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_second_derivatives_agree_with_finite_differences():
    norm, ours = pair(2)

    def function(x, weight, bias):
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, (x,))

    arguments = [
        t.detach().clone().requires_grad_() for t in (draw(2, 2, 3, 3), norm.weight, norm.bias)
    ]
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_third_derivatives_are_refused_rather_than_wrong():
    _, ours = pair(2)
    x = draw(1, 2, 3, 3).requires_grad_()
    (one,) = torch.autograd.grad(ours(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(one.square().sum(), x, create_graph=True)


def test_networks_keep_their_state_dict_and_the_original_its_modules():
    with isolated_rng(0):
        network = convnet((3, 32, 32), 10)
    fast = with_fast_norm(network)
    assert sum(p.numel() for p in fast.parameters()) == 320_010
    assert list(fast.state_dict()) == list(network.state_dict())
    assert all(torch.equal(fast.state_dict()[k], v) for k, v in network.state_dict().items())
    assert sum(isinstance(m, InstanceNorm) for m in fast.modules()) == 3
    assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == 3


def test_other_norms_stay_as_they_are():
    others = nn.Sequential(
        nn.GroupNorm(2, 4), nn.GroupNorm(4, 4, affine=False), nn.LayerNorm(3), nn.Identity()
    )
    assert [type(m) for m in with_fast_norm(others)] == [type(m) for m in others]

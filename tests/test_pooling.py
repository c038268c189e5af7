"""The short average pooling is PyTorch's, to the last bit, and steps aside where it cannot be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.pooling import HalvingPool

SHAPES = [(2, 3, 4, 6), (1, 1, 2, 2), (5, 2, 8, 8), (0, 3, 4, 4)]
DTYPES = [torch.float32, torch.float64]


def bits(tensor: Tensor) -> Tensor:
    """What distinguishes -0 from 0, too."""
    return tensor.contiguous().view(torch.int64 if tensor.dtype is torch.float64 else torch.int32)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Numbers of every size, zeros of both signs and tiny ones among them."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source, dtype=dtype)
    x = (
        x
        * torch.tensor([1.0, 1e30, 1e-30, 0.0, -0.0]).to(dtype)[
            torch.randint(5, shape, generator=source)
        ]
    )
    tiny = torch.nextafter(torch.zeros((), dtype=dtype), -torch.ones((), dtype=dtype))
    return torch.where(torch.rand(shape, generator=source) < 0.1, tiny, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_both_derivatives_have_torchs_bits(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    results = []
    half = (*shape[:2], shape[2] // 2, shape[3] // 2)
    for pool in (nn.AvgPool2d(2), HalvingPool()):
        x = draw(*shape, dtype=dtype).requires_grad_()
        d = draw(*half, dtype=dtype, seed=1).requires_grad_()
        y = pool(x)
        (first,) = torch.autograd.grad(y, x, d, create_graph=True)
        (second,) = torch.autograd.grad(first, d, draw(*shape, dtype=dtype, seed=2))
        results.append([bits(t.detach()) for t in (y, first, second)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_of_negative_zeros_nan_and_infinity_come_out_as_torchs(dtype: torch.dtype) -> None:
    special = torch.tensor([-0.0, 0.0, torch.nan, torch.inf, -torch.inf], dtype=dtype)
    x = torch.cartesian_prod(special, special, special, special).view(-1, 1, 2, 2)
    ours, theirs = HalvingPool()(x), F.avg_pool2d(x, 2)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(bits(ours[~ours.isnan()]), bits(theirs[~theirs.isnan()]))
    assert torch.equal(bits(HalvingPool()(-x[:1] * 0)), bits(F.avg_pool2d(-x[:1] * 0, 2)))


def test_a_cotangent_that_is_not_contiguous_is_spread_alike() -> None:
    x = draw(2, 3, 4, 4, dtype=torch.float32)
    grads = []
    for pool in (nn.AvgPool2d(2), HalvingPool()):
        leaf = x.clone().requires_grad_()
        pool(leaf).transpose(2, 3).square().sum().backward()
        assert leaf.grad is not None
        grads.append(bits(leaf.grad))
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 3, 5, 4),
        torch.rand(2, 3, 4, 7),
        torch.rand(3, 4, 4),
        torch.rand(2, 3, 4, 4).bfloat16(),
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.rand(2, 3, 8, 4)[:, :, ::2],
    ],
)
def test_other_inputs_take_torchs_way(x: Tensor) -> None:
    ours, theirs = HalvingPool()(x), nn.AvgPool2d(2)(x)
    assert torch.equal(ours, theirs)
    assert ours.stride() == theirs.stride()


def test_it_can_be_mapped_and_differentiated_as_a_function() -> None:
    x = torch.rand(3, 2, 1, 4, 4)
    pool = HalvingPool()
    assert torch.equal(torch.vmap(pool)(x), torch.stack([pool(each) for each in x]))
    grad = torch.func.grad(lambda x: pool(x).square().sum())(x[0])
    expected = F.interpolate(pool(x[0]) / 2, scale_factor=2)
    torch.testing.assert_close(grad, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch uses it itself
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_and_reverse_over_forward_are_torchs() -> None:
    x = draw(2, 3, 4, 4, dtype=torch.float64)
    tangent = draw(2, 3, 4, 4, dtype=torch.float64, seed=1)
    found = []
    for pool in (nn.AvgPool2d(2), HalvingPool()):
        direction = tangent.clone().requires_grad_()
        with forward_ad.dual_level():
            y = pool(forward_ad.make_dual(x.clone().requires_grad_(), direction))
            slope = forward_ad.unpack_dual(y).tangent
            assert slope is not None
            (back,) = torch.autograd.grad(slope.sin().sum(), direction)
        found.append((slope.detach(), back))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_the_convnet_reads_as_before() -> None:
    network = convnet((1, 8, 8), 10, depth=2, width=4)
    assert isinstance(network[3], HalvingPool)
    assert str(network[3]) == str(nn.AvgPool2d(2))
    assert "HalvingPool" not in str(network)

"""The ConvNet of the field, and the factory that builds it with weights of its own seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.pooling import HalvingPool
from robustdd_bench.protocol.preprocessing import Normalise, Preprocessing

CPU = torch.device("cpu")
IMAGES = torch.linspace(0, 1, 5 * 3 * 8 * 8).view(5, 3, 8, 8)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _factory(preprocessing: Preprocessing | None = None, **options: Any) -> NetworkFactory:
    options = {"depth": 1, "width": 4} | options
    return NetworkFactory(
        convnet, options, (3, 8, 8), 7, preprocessing or Preprocessing(), IMAGES, CPU
    )


@pytest.mark.parametrize(("classes", "count"), [(10, 320_010), (100, 504_420)])
def test_convnet_3_has_the_parameters_that_the_field_reports(classes: int, count: int) -> None:
    assert _parameters(convnet((3, 32, 32), classes, depth=3, width=128)) == count
    assert _parameters(convnet((3, 32, 32), classes)) == count


def test_a_block_is_convolution_instance_norm_relu_and_pooling() -> None:
    network = convnet((1, 8, 8), 10, depth=2, width=6)
    kinds = [type(layer) for layer in network]
    block = [nn.Conv2d, nn.GroupNorm, nn.ReLU, HalvingPool]
    assert kinds == [*block, *block, nn.Flatten, nn.Linear]
    norm = network[1]
    assert (norm.num_groups, norm.num_channels, norm.affine) == (6, 6, True)
    x = torch.rand(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), nn.InstanceNorm2d(6)(x))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 8), (2, 4, 12)])
def test_logits_have_one_value_per_class_for_any_image_that_can_be_halved(
    shape: tuple[int, int, int],
) -> None:
    assert convnet(shape, 5, depth=2, width=3)(torch.zeros(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 8), {"depth": 4}, "depth 4 needs images divisible by 16, these are 8x8"),
        ((3, 32, 20), {"depth": 3}, "divisible by 8, these are 32x20"),
        ((3, 28, 20), {}, "divisible by 8, these are 28x20"),
        ((1, 28, 28), {"depth": 6}, "divisible by 64, these are 28x28"),
        ((3, 32, 32), {"depth": 0}, "positive depth and width, not 0 and 128"),
        ((3, 32, 32), {"width": -1}, "positive depth and width, not 3 and -1"),
    ],
)
def test_images_too_small_for_the_depth_are_refused(
    shape: tuple[int, int, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        convnet(shape, 10, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_images_of_28x28_are_those_of_32x32_with_a_border_of_zeros(
    channels: int, depth: int
) -> None:
    """As the published code pads: 2 more in the first convolution, nothing elsewhere."""
    small = convnet((channels, 28, 28), 10, depth=depth, width=5)
    large = convnet((channels, 32, 32), 10, depth=depth, width=5)
    large.load_state_dict(small.state_dict())
    x = torch.rand(4, channels, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(x), large(nn.functional.pad(x, (2, 2, 2, 2))))
    paddings = [layer.padding for layer in small if isinstance(layer, nn.Conv2d)]
    assert paddings == [(3, 3)] + [(1, 1)] * (depth - 1)


def test_convnet_3_on_mnist_has_317706_parameters() -> None:
    """1,280 + 256 of the first block, 147,840 of each further one, 20,490 of the linear layer."""
    assert _parameters(convnet((1, 28, 28), 10)) == 1_536 + 2 * 147_840 + 20_490


@pytest.mark.parametrize(
    ("shape", "depth", "features"),
    [((1, 28, 28), 1, 14), ((3, 28, 28), 2, 7), ((1, 8, 8), 2, 2), ((3, 32, 32), 3, 4)],
)
def test_no_network_that_could_be_built_before_28x28_was_padded_has_changed(
    shape: tuple[int, int, int], depth: int, features: int
) -> None:
    network = convnet(shape, 10, depth=depth, width=4)
    assert {layer.padding for layer in network if isinstance(layer, nn.Conv2d)} == {(1, 1)}
    assert network[-1].in_features == 4 * features**2


def _weights(network: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in network.state_dict().values()]


def test_one_seed_gives_the_same_weights_on_any_call_and_another_seed_others() -> None:
    factory = _factory()
    first = _weights(factory(1))
    torch.rand(3, generator=torch.Generator().manual_seed(9))
    for again in (_weights(factory(1)), _weights(_factory()(1))):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], _weights(factory(2))[0])


def test_the_weights_of_a_seed_are_pinned() -> None:
    """A change of initialisation would silently change every record."""
    weight = _factory()(0)[1][0].weight
    expected = torch.tensor([-0.001441, 0.103239, -0.158395])
    torch.testing.assert_close(weight.flatten()[:3], expected, atol=1e-6, rtol=0)


def test_weights_do_not_depend_on_the_global_generator_and_leave_it_untouched() -> None:
    saved = torch.random.get_rng_state()
    try:
        drawn = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            drawn.append(_weights(_factory()(5)))
            assert torch.equal(before, torch.random.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    finally:
        torch.random.set_rng_state(saved)


def test_networks_are_fresh_trainable_and_in_train_mode() -> None:
    factory = _factory()
    one, two = factory(0), factory(0)
    assert one.training
    assert all(parameter.requires_grad for parameter in one.parameters())
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(two.parameters()).abs().sum() > 0


def test_preprocessing_is_the_first_layer_and_has_no_parameters() -> None:
    spec = Preprocessing("normalise", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    network, plain = _factory(spec)(3), _factory()(3)
    assert isinstance(network[0], Normalise)
    assert _parameters(network) == _parameters(plain)
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.std).view(1, 3, 1, 1)
    torch.testing.assert_close(network(IMAGES), plain((IMAGES - mean) / std))


def test_options_that_do_not_fit_are_the_tracks_fault() -> None:
    with pytest.raises(UsageError, match=r"options do not fit: .*'dept'"):
        _factory(dept=3)(0)

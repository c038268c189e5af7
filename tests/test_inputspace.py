import pytest
import torch
from torch import nn

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.toolkit.inputspace import features, split_network, to_pixels

PIXELS = torch.rand(60, 2, 4, 4, generator=torch.Generator().manual_seed(0))
KINDS = [
    Preprocessing("none"),
    Preprocessing("normalise", (0.4, 0.5), (0.2, 0.3)),
    Preprocessing("zca"),
]


def network(preprocessing):
    options = {"depth": 1, "width": 3}
    shape = PIXELS.shape[1:]
    device = torch.device("cpu")
    return NetworkFactory(convnet, options, shape, 5, preprocessing, PIXELS, device)(0)


@pytest.mark.parametrize("preprocessing", KINDS, ids=lambda p: p.kind)
def test_to_pixels_inverts_the_preprocessing_layer(preprocessing):
    layer, body = split_network(network(preprocessing))
    assert isinstance(body, nn.Sequential)
    torch.testing.assert_close(to_pixels(layer, layer(PIXELS)), PIXELS, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preprocessing", KINDS, ids=lambda p: p.kind)
def test_layer_then_body_is_the_network(preprocessing):
    whole = network(preprocessing)
    layer, body = split_network(whole)
    assert torch.equal(body(layer(PIXELS)), whole(PIXELS))


def test_a_network_without_preprocessing_in_front_is_left_whole():
    whole = nn.Sequential(nn.Flatten(), nn.Linear(32, 5))
    layer, body = split_network(whole)
    assert isinstance(layer, nn.Identity)
    assert body is whole


def test_a_layer_without_known_inverse_is_refused():
    with pytest.raises(UsageError, match="no inverse is known of the preprocessing layer Tanh"):
        to_pixels(nn.Tanh(), PIXELS)


def test_features_are_the_input_of_the_last_linear_layer():
    whole = network(KINDS[1])
    found = features(whole, PIXELS)
    assert found.shape == (60, 3 * 2 * 2)
    assert torch.equal(whole[1][-1](found), whole(PIXELS))
    assert found.requires_grad
    assert not whole[1][-1]._forward_pre_hooks


def test_features_of_a_network_without_linear_layer_are_refused():
    with pytest.raises(UsageError, match="has none"):
        features(nn.Conv2d(2, 5, 4), PIXELS)

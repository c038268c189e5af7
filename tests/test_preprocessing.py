"""Preprocessing: a layer of the network, described well enough to be stored and rebuilt."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.preprocessing import ZCA, Normalise, Preprocessing, zca_statistics


def _images(n: int = 200, seed: int = 0) -> Tensor:
    """Correlated images (n,2,3,2) in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(12, 12, generator=generator)
    flat = torch.rand(n, 12, generator=generator) @ mix
    return (flat / flat.max()).view(n, 2, 3, 2)


def test_no_preprocessing_is_the_identity() -> None:
    layer = Preprocessing().layer(_images())
    assert isinstance(layer, nn.Identity)


def test_normalise_subtracts_the_mean_and_divides_by_the_std_of_each_channel() -> None:
    x = _images(5)
    layer = Preprocessing("normalise", (0.5, 0.25), (0.2, 0.1)).layer(x)
    expected = x.clone()
    for b in range(5):
        for c, (mean, std) in enumerate(((0.5, 0.2), (0.25, 0.1))):
            expected[b, c] = (x[b, c] - mean) / std
    torch.testing.assert_close(layer(x), expected)


def _zca_of_the_paper(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """METHODS section 1, one loop at a time, by the singular values of the covariance."""
    flat = x.flatten(1).double()
    mean = torch.stack([flat[:, j].sum() / len(flat) for j in range(flat.shape[1])])
    covariance = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64)
    for row in flat:
        covariance += torch.outer(row - mean, row - mean)
    covariance /= len(flat) - 1
    u, s, _ = torch.linalg.svd(covariance)
    return mean, u @ torch.diag(1 / torch.sqrt(s + epsilon)) @ u.T


@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
def test_zca_is_the_formula_of_the_field(epsilon: float) -> None:
    x = _images()
    mean, matrix = zca_statistics(x, epsilon)
    expected_mean, expected_matrix = _zca_of_the_paper(x, epsilon)
    torch.testing.assert_close(mean.double(), expected_mean, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(matrix.double(), expected_matrix, atol=1e-6, rtol=1e-6)


def test_the_zca_layer_whitens_flattened_pixels_and_keeps_their_shape() -> None:
    x = _images()
    layer = Preprocessing("zca", epsilon=0.1).layer(x)
    mean, matrix = _zca_of_the_paper(x, 0.1)
    expected = ((x.flatten(1).double() - mean) @ matrix).view_as(x)
    assert isinstance(layer, ZCA)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x[3:4]), layer(x)[3:4])


def test_whitened_data_has_the_covariance_s_over_s_plus_epsilon() -> None:
    x, epsilon = _images(), 1e-4
    white = Preprocessing("zca", epsilon=epsilon).layer(x)(x).flatten(1).double()
    s, u = torch.linalg.eigh(torch.cov(x.flatten(1).double().T))
    expected = (u * (s / (s + epsilon))) @ u.T
    torch.testing.assert_close(torch.cov(white.T), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(white.mean(0), torch.zeros(12).double(), atol=1e-5, rtol=0)


def test_zca_on_bytes_equals_zca_on_the_same_pixels() -> None:
    images = (_images() * 255).round().to(torch.uint8)
    for a, b in zip(zca_statistics(images, 0.1), zca_statistics(images / 255, 0.1), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_zca_of_constant_images_is_finite() -> None:
    mean, matrix = zca_statistics(torch.full((4, 1, 2, 2), 0.5), 0.1)
    assert torch.equal(mean, torch.full((4,), 0.5))
    torch.testing.assert_close(matrix, torch.eye(4) * 0.1**-0.5)


@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
def test_layers_carry_gradients_and_nothing_to_train(kind: str) -> None:
    x = _images(6).requires_grad_()
    layer = Preprocessing(kind, (0.5, 0.5), (0.2, 0.2)).layer(x.detach())
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}


@pytest.mark.parametrize(
    "spec",
    [
        Preprocessing(),
        Preprocessing("normalise", (0.5, 0.25), (0.2, 0.1)),
        Preprocessing("zca", epsilon=0.01),
    ],
)
def test_a_description_goes_through_json_and_comes_back_equal(spec: Preprocessing) -> None:
    stored = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert Preprocessing.from_dict(stored) == spec


def test_what_a_description_leaves_out_is_the_default() -> None:
    assert Preprocessing.from_dict({"kind": "zca"}) == Preprocessing("zca", epsilon=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "whiten"}, "must be one of none, normalise, zca, not 'whiten'"),
        ({"kind": "normalise"}, "a finite mean and a positive std for each channel"),
        ({"kind": "normalise", "mean": (0.5,), "std": (0.1, 0.2)}, "a positive std for each"),
        ({"kind": "normalise", "mean": (0.5,), "std": (0.0,)}, "a positive std for each"),
        ({"kind": "normalise", "mean": (0.5,), "std": (float("nan"),)}, "positive std for each"),
        ({"kind": "normalise", "mean": (float("inf"),), "std": (1.0,)}, "positive std for each"),
        ({"kind": "zca", "epsilon": 0.0}, "zca needs a positive epsilon, not 0"),
        ({"kind": "zca", "epsilon": float("nan")}, "zca needs a positive epsilon, not nan"),
    ],
)
def test_a_description_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing(**fields)


def test_channels_that_do_not_fit_the_images_are_refused() -> None:
    with pytest.raises(UsageError, match="normalise has 3 channels, the images 2"):
        Preprocessing("normalise", (0.5,) * 3, (0.2,) * 3).layer(_images())


def test_layers_keep_the_dtype_and_device_of_the_module() -> None:
    layer = Normalise((0.5, 0.5), (0.2, 0.2)).double()
    assert layer(_images(2).double()).dtype == torch.float64

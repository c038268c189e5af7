"""The field's pool of architectures: sizes, shapes, gradients, and how they shrink for digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol import architectures
from robustdd_bench.protocol.networks import NetworkFactory
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast.flat import FlatNetwork

REGISTRY = collect(get_plugin_manager(entry_points=False))
POOL = ("mlp", "alexnet", "vgg11", "resnet18", "resnet18-bn", "vit-tiny")
WITHOUT_STATISTICS = tuple(name for name in POOL if name != "resnet18-bn")
CONVOLUTIONAL = ("alexnet", "vgg11", "resnet18", "resnet18-bn")
DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)


def builder(name: str) -> Callable[..., nn.Module]:
    return REGISTRY.get("networks", name).load()


@lru_cache(maxsize=8)
def network(name: str, shape: tuple[int, ...] = DIGITS, classes: int = 10) -> nn.Module:
    """A network in eval mode, made once for all tests: none may change it."""
    zeros, cpu = torch.zeros(1, *shape), torch.device("cpu")
    factory = NetworkFactory(builder(name), {}, shape, classes, Preprocessing(), zeros, cpu)
    return factory(0)[1].eval()


def pixels(shape: tuple[int, ...], count: int = 3, dtype=torch.float32) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


COUNTS = {
    # (CIFAR-10, CIFAR-100, MNIST, digits)
    "mlp": (411_146, 422_756, 118_282, 26_122),
    "alexnet": (1_872_202, 2_148_772, 1_865_802, 1_837_002),
    "vgg11": (9_231_114, 9_277_284, 9_229_962, 9_229_962),
    "resnet18": (11_173_962, 11_220_132, 11_172_810, 11_172_810),
    "resnet18-bn": (11_173_962, 11_220_132, 11_172_810, 11_172_810),
    "vit-tiny": (5_362_762, 5_380_132, 5_353_738, 5_345_098),
}


@pytest.mark.parametrize("name", POOL)
def test_the_number_of_parameters_is_the_documented_one(name: str) -> None:
    data = ((CIFAR, 10), (CIFAR, 100), (MNIST, 10), (DIGITS, 10))
    with torch.device("meta"):
        built = [builder(name)(shape, classes) for shape, classes in data]
    counts = tuple(sum(p.numel() for p in one.parameters()) for one in built)
    assert counts == COUNTS[name]
    documented = (builder(name).__doc__ or "").replace("\n", " ")
    assert f"{counts[0]:,} parameters" in documented


@pytest.mark.parametrize("shape", [DIGITS, (3, 16, 24), MNIST, CIFAR])
@pytest.mark.parametrize("name", POOL)
def test_logits_have_one_finite_value_per_class(name: str, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        logits = network(name, shape, 7)(pixels(shape, 2))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", POOL)
def test_every_parameter_and_every_pixel_gets_a_gradient(name: str) -> None:
    one, x = network(name), pixels(DIGITS, 8).requires_grad_()
    targets = [x, *one.parameters()]
    loss = F.cross_entropy(one(x), torch.arange(8))
    gradients = torch.autograd.grad(loss, targets)
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0
    # Poolings may leave single pixels without one, but no image and no border.
    assert (gradients[0].abs().amax((2, 3)) > 0).all()
    assert (gradients[0].abs().amax((0, 1)) > 0).all()


@pytest.mark.parametrize("name", POOL)
def test_the_same_seed_gives_the_same_answers_and_another_seed_others(name: str) -> None:
    zeros, cpu = torch.zeros(1, *DIGITS), torch.device("cpu")
    factory = NetworkFactory(builder(name), {}, DIGITS, 10, Preprocessing(), zeros, cpu)
    x = pixels(DIGITS)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        first = network(name)(x)
        assert torch.equal(first, network(name)(x))
        assert torch.equal(first, factory(0).eval()(x))
        assert not torch.equal(first, factory(1).eval()(x))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", POOL)
def test_in_eval_mode_an_answer_does_not_depend_on_the_batch(name: str) -> None:
    one, x = network(name), pixels(DIGITS)
    with torch.no_grad():
        alone = torch.cat([one(image.unsqueeze(0)) for image in x])
        torch.testing.assert_close(one(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_networks_mapped_over_stacked_parameters_answer_as_one_after_the_other(name: str) -> None:
    build = builder(name)
    generator = torch.Generator().manual_seed(2)
    with isolated_rng(3):
        networks = [build(DIGITS, 3).double() for _ in range(2)]
    with torch.no_grad():
        for one in networks:
            for parameter in one.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.02 * noise)
    parameters, buffers = stack_module_state(networks)
    x, y = pixels(DIGITS, 2, torch.float64), torch.tensor([0, 2])

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(networks[0], weights, (image,)), y)

    assert not buffers
    mapped = vmap(loss, in_dims=(0, None))(parameters, x)
    slopes = vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))(parameters, x)
    for k, one in enumerate(networks):
        image = x.clone().requires_grad_()
        value = F.cross_entropy(one(image), y)
        torch.testing.assert_close(mapped[k], value, rtol=1e-10, atol=1e-12)
        (slope,) = torch.autograd.grad(value, image)
        torch.testing.assert_close(slopes[k], slope, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_networks_of_the_pool_can_be_distilled_with(name: str) -> None:
    """As functions of one vector, twice differentiable: what the matching of trajectories needs."""
    flat = FlatNetwork(nn.Sequential(nn.Identity(), network(name)))
    theta = flat.theta().requires_grad_()
    x = pixels(DIGITS, 2).requires_grad_()
    torch.testing.assert_close(flat(theta, x), network(name)(x), rtol=1e-4, atol=1e-5)
    loss = F.cross_entropy(flat(theta, x), torch.tensor([0, 1]))
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0


def test_batch_norm_is_refused_where_a_trajectory_is_needed() -> None:
    with pytest.raises(ValueError, match="running statistics"):
        FlatNetwork(nn.Sequential(nn.Identity(), network("resnet18-bn")))


def _kinds(one: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in one.modules())


@pytest.mark.parametrize(
    ("name", "convolutions", "norms", "norm"),
    [
        ("alexnet", 5, 0, nn.GroupNorm),
        ("vgg11", 8, 8, nn.GroupNorm),
        ("resnet18", 20, 20, nn.GroupNorm),
        ("resnet18-bn", 20, 20, nn.BatchNorm2d),
    ],
)
def test_convolutions_and_norms_are_those_of_the_field(
    name: str, convolutions: int, norms: int, norm: type[nn.Module]
) -> None:
    one = network(name)
    assert _kinds(one, nn.Conv2d) == convolutions
    assert _kinds(one, norm) == norms
    assert _kinds(one, nn.GroupNorm) + _kinds(one, nn.BatchNorm2d) == norms
    for module in one.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == module.num_channels
        assert not getattr(module, "inplace", False)


def _sides(name: str, shape: tuple[int, ...]) -> list[int]:
    """Side of what each norm or convolution makes, and of what goes into the linear layer."""
    seen: list[int] = []
    one = network(name, shape)
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
        for module in one.modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d)
    ]
    with torch.no_grad():
        one(pixels(shape, 2))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "shape", "sides"),
    [
        ("alexnet", CIFAR, [32, 16, 16, 8, 8, 8, 8, 4]),
        ("alexnet", MNIST, [32, 16, 16, 8, 8, 8, 8, 4]),
        ("alexnet", DIGITS, [8, 4, 4, 2, 2, 2, 2, 1]),
        ("vgg11", CIFAR, [32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1]),
        ("vgg11", MNIST, [32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1]),
        ("vgg11", DIGITS, [8, 4, 4, 2, 2, 2, 2, 2, 2, 2, 1]),
        ("resnet18", CIFAR, [32] * 5 + [16] * 5 + [8] * 5 + [4] * 5),
        ("resnet18", DIGITS, [8] * 5 + [4] * 5 + [2] * 10),
    ],
)
def test_images_are_halved_as_in_the_field_and_less_often_where_they_are_small(
    name: str, shape: tuple[int, ...], sides: list[int]
) -> None:
    assert _sides(name, shape) == sides


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("side", [4, 5, 6, 7, 9, 12])
def test_no_norm_sees_a_single_pixel_whatever_the_size(name: str, side: int) -> None:
    sizes: list[int] = []
    one = builder(name)((1, side, side), 3)
    for module in one.modules():
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.register_forward_hook(lambda _m, i, _o: sizes.append(min(i[0].shape[-2:])))
    assert one(torch.zeros(2, 1, side, side)).shape == (2, 3)
    assert all(size >= 2 for size in sizes)


def test_a_transformer_sees_patches_of_four_pixels_and_of_two_in_digits() -> None:
    tokens = {shape: network("vit-tiny", shape).positions.shape[1] for shape in (DIGITS, CIFAR)}
    assert tokens == {DIGITS: 17, CIFAR: 65}


def test_the_attention_written_out_is_pytorchs() -> None:
    layer = network("vit-tiny").layers[0]
    x = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(0))
    q, k, v = (
        part.unflatten(2, (3, 64)).transpose(1, 2) for part in layer.qkv(x).split(192, dim=2)
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer._attend(x), layer.out(mixed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("mlp", (1, 8, 8), {"width": 0}, "mlp needs a positive width"),
        ("alexnet", (3, 3, 8), {}, "alexnet needs images of at least 4x4 pixels, these are 3x8"),
        ("vgg11", (3, 2, 2), {}, "vgg11 needs images of at least 4x4 pixels, these are 2x2"),
        ("resnet18", (1, 8, 1), {}, "resnet18 needs images of at least 4x4 pixels, these are 8x1"),
        ("resnet18-bn", (1, 3, 3), {}, "needs images of at least 4x4 pixels, these are 3x3"),
        ("vgg11", (3, 32, 32), {"norm": "layer"}, "no norm 'layer'; choose from instance, batch"),
        ("vit-tiny", (1, 9, 8), {}, "patch 2 needs images divisible by 2.* these are 9x8"),
        ("vit-tiny", (3, 30, 32), {}, "patch 4 needs images divisible by 4.* these are 30x32"),
        ("vit-tiny", (1, 2, 2), {}, "of at least 4x4 pixels, these are 2x2"),
        ("vit-tiny", (1, 8, 8), {"heads": 5}, "a width divisible by its heads"),
        ("vit-tiny", (1, 8, 8), {"patch": 0}, "positive sizes"),
    ],
)
def test_images_too_small_and_wrong_options_are_refused_in_one_line(
    name: str, shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        builder(name)(shape, 10, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_a_narrower_network_has_fewer_channels_throughout(name) -> None:
    build = getattr(architectures, name)
    wide, narrow = build((1, 8, 8), 10), build((1, 8, 8), 10, width=16)
    shapes = [
        [tuple(p.shape[:1]) for n, p in network.named_parameters() if p.ndim == 4]
        for network in (wide, narrow)
    ]
    assert [a // 4 for (a,) in shapes[0]] == [b for (b,) in shapes[1]]
    assert narrow(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(UsageError, match=f"{name} needs a positive width"):
        build((1, 8, 8), 10, width=0)

"""Compiled networks: the values and derivatives of the modules they stand for."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from test_engine import STRATEGY, drawn_steps
from test_unroll import CLASSES, assert_equal, problem
from torch import nn

from robustdd_bench.protocol.architectures import alexnet, mlp, resnet18, vgg11
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast import blocks, convolutions
from robustdd_bench.toolkit.fast.blocks import NormBlock, compiled
from robustdd_bench.toolkit.fast.compile import availability
from robustdd_bench.toolkit.fast.convolutions import Convolution, Tape
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories import unroll
from robustdd_bench.toolkit.trajectories.engine import AdjointEngine
from robustdd_bench.toolkit.trajectories.unroll import Step, adjoint_gradients, unrolled_gradients

SHAPES = [(2, 3, 8, 8), (1, 5, 8, 2), (3, 1, 2, 2), (2, 3, 5, 7), (0, 3, 4, 4)]
WHAT = [(False, False), (True, False), (True, True)]


@pytest.fixture(autouse=True)
def _compiler():
    found = availability(torch.device("cpu"))
    if not found.active:
        pytest.skip(found.reason)


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def block(channels, relu, pooled, dtype=torch.float64):
    norm = nn.GroupNorm(channels, channels).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(draw(channels, seed=5, dtype=dtype))
        norm.bias.copy_(draw(channels, seed=6, dtype=dtype))
    return NormBlock(norm, relu=relu, pooled=pooled)


def derivatives(module, function, x):
    """Value, first derivatives with a cotangent, and second ones with three."""
    x = x.detach().requires_grad_()
    y = function(x)
    d = draw(*y.shape, seed=2, dtype=x.dtype).requires_grad_()
    first = torch.autograd.grad(y, (x, module.weight, module.bias), d, create_graph=True)
    cotangents = [draw(*g.shape, seed=i, dtype=x.dtype) for i, g in enumerate(first, 3)]
    second = torch.autograd.grad(first, (d, x, module.weight), cotangents)
    return [y, *first, *second]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("relu", "pooled"), WHAT)
def test_a_block_equals_its_formula_up_to_second_derivatives(shape, relu, pooled):
    module = block(shape[1], relu, pooled)
    for offset in (0.0, 5.0):
        x = draw(*shape) + offset
        found = derivatives(module, module, x)
        expected = derivatives(module, module.formula, x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("relu", "pooled"), WHAT)
def test_a_block_agrees_with_finite_differences(relu, pooled):
    module = block(2, relu, pooled)

    def function(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    x = draw(2, 2, 4, 4).requires_grad_()
    weight = module.weight.detach().clone().requires_grad_()
    bias = module.bias.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (x, weight, bias))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


def test_an_input_in_another_order_of_memory_has_all_its_derivatives():
    module = block(3, True, True)
    x = draw(2, 8, 8, 3).permute(0, 3, 1, 2)
    assert not x.is_contiguous()
    for one, other in zip(
        derivatives(module, module, x), derivatives(module, module.formula, x), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_float32_is_as_near_to_float64_as_torchs():
    module = block(4, True, True, torch.float32)
    x = draw(3, 4, 16, 16, dtype=torch.float32) + 2
    exact = copy.deepcopy(module).double()
    truth = derivatives(exact, exact.formula, x.double())
    ours = derivatives(module, module, x)
    theirs = derivatives(module, module.formula, x)
    for one, other, right in zip(ours, theirs, truth, strict=True):
        error, allowed = ((v.double() - right).norm() for v in (one, other))
        assert error <= 4 * allowed + 1e-6 * right.norm()


def test_the_number_of_threads_changes_no_bit():
    module = block(7, True, True, torch.float32)
    x, before, found = draw(5, 7, 8, 8, dtype=torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(derivatives(module, module, x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nan_and_infinity_pass_as_in_torch():
    module = block(2, True, True)
    x = draw(2, 2, 4, 4)
    x[0, 0, 0, 0], x[1, 1, 2, 2] = torch.nan, torch.inf
    assert torch.equal(module(x).isnan(), module.formula(x).isnan())


def test_third_derivatives_are_refused_rather_than_wrong():
    network = compiled(convnet((3, 8, 8), 2, depth=1, width=4).double(), Tape())
    x = draw(1, 3, 8, 8).requires_grad_()
    (one,) = torch.autograd.grad(network(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative; run with --compile off"):
        torch.autograd.grad(one.square().sum(), x, create_graph=True)


def test_transforms_of_functions_and_other_types_take_the_formula():
    module = block(2, True, True)
    x = draw(3, 2, 4, 4)
    mapped = torch.func.vmap(lambda one: module(one.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(mapped, module.formula(x))
    gradient = torch.func.grad(lambda v: module(v).sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(module.formula(leaf).sum(), leaf)[0])
    half = copy.deepcopy(module).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


# Networks.

SHAPE = (3, 32, 32)
NETWORKS = {
    "convnet": (lambda: convnet(SHAPE, 10, width=6), 3),
    "vgg11": (lambda: vgg11(SHAPE, 10, width=4), 8),
    "resnet18": (lambda: resnet18(SHAPE, 10, width=4), 20),
    "resnet18, batch norm": (lambda: resnet18(SHAPE, 10, norm="batch", width=4), 0),
    "alexnet": (lambda: alexnet(SHAPE, 10), 0),
    "mlp": (lambda: mlp(SHAPE, 10), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("taped", [False, True])
def test_a_compiled_network_is_the_same_function_of_the_same_tensors(name, taped):
    build, expected_blocks = NETWORKS[name]
    with isolated_rng(0):
        network = build().double().eval()
    fast = compiled(network, Tape() if taped else None)
    assert sum(isinstance(m, NormBlock) for m in fast.modules()) == expected_blocks
    assert not any(isinstance(m, NormBlock | Convolution) for m in network.modules())
    assert list(fast.state_dict()) == list(network.state_dict())
    assert [id(p) for p in fast.parameters()] == [id(p) for p in network.parameters()]
    assert [id(b) for b in fast.buffers()] == [id(b) for b in network.buffers()]
    x, results = draw(2, *SHAPE), []
    for each in (fast, network):
        leaf = x.clone().requires_grad_()
        logits = each(leaf)
        results.append(
            [logits, *torch.autograd.grad(logits.logsumexp(1).sum(), [leaf, *each.parameters()])]
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_block_takes_in_what_follows_it_and_nothing_else():
    norm = nn.GroupNorm(4, 4)
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)

    class Own(nn.ReLU):
        pass

    for following, taken in (
        ([nn.ReLU(), nn.AvgPool2d(2)], (True, True)),
        ([nn.ReLU(), nn.AvgPool2d(3)], (True, False)),
        ([nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)], (True, False)),
        ([nn.ReLU(), nn.MaxPool2d(2)], (True, False)),
        ([nn.AvgPool2d(2), nn.ReLU()], (False, False)),
        ([hooked, nn.AvgPool2d(2)], (False, False)),
        ([Own(), nn.AvgPool2d(2)], (False, False)),
        ([nn.Tanh()], (False, False)),
        ([], (False, False)),
    ):
        network = nn.Sequential(norm, *following)
        fast = compiled(network)
        assert (fast[0].relu, fast[0].pooled) == taken
        x = draw(2, 4, 7, 6, dtype=torch.float32)
        torch.testing.assert_close(fast(x), network(x))
    with_hook = nn.Sequential(nn.GroupNorm(4, 4))
    with_hook[0].register_forward_hook(lambda *_: None)
    assert isinstance(compiled(with_hook)[0], nn.GroupNorm)
    assert isinstance(compiled(nn.GroupNorm(4, 4)), NormBlock)
    for other in (nn.GroupNorm(2, 4), nn.GroupNorm(4, 4, affine=False), nn.LayerNorm(4)):
        assert type(compiled(nn.Sequential(other))[0]) is type(other)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 0, "stride": 2},
        {"padding": (2, 1), "dilation": 2},
        {"padding": 1, "bias": False},
    ],
)
def test_a_convolution_equals_torchs_up_to_second_derivatives(channels, options):
    with isolated_rng(0):
        plain = nn.Conv2d(channels, 5, 3, **options).double()
    ours, results = Convolution(plain, Tape()), []
    for module in (ours, plain):
        x = draw(2, channels, 7, 8).requires_grad_()
        leaves = [x, *module.parameters()]
        y = module(x)
        d = draw(*y.shape, seed=2).requires_grad_()
        first = torch.autograd.grad(y, leaves, d, create_graph=True)
        found = [y, *first]
        # One cotangent after the other, and all of them: absent ones are not zeros to autograd.
        for chosen in [*((i,) for i in range(len(first))), range(len(first))]:
            cotangents = [draw(*first[i].shape, seed=3 + i) for i in chosen]
            found += torch.autograd.grad(
                [first[i] for i in chosen], [d, *leaves], cotangents,
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        results.append(found)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("bias", [True, False])
def test_grey_images_are_convolved_by_kernels(side, bias, monkeypatch):
    called = []
    real = convolutions.kernels(torch.device("cpu"))
    monkeypatch.setattr(
        convolutions,
        "kernels",
        lambda device: lambda name, *a: called.append(name) or real(name, *a),
    )
    with isolated_rng(0):
        plain = nn.Conv2d(1, 5, 3, padding=1, bias=bias).double()
    ours, results = Convolution(plain), []
    for module in (ours, plain):
        x = draw(3, 1, side, side).requires_grad_()
        leaves = [x, *module.parameters()]
        y = module(x)
        d = draw(*y.shape, seed=2).requires_grad_()
        first = torch.autograd.grad(y, leaves, d, create_graph=True)
        cotangents = [draw(*g.shape, seed=i) for i, g in enumerate(first, 3)]
        second = torch.autograd.grad(first, [d, x, module.weight], cotangents)
        (d_x,) = torch.autograd.grad(module(x), x, d)  # as an attack asks for it
        results.append([y, *first, *second, d_x])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert {"convolve", "convolve_back"} <= set(called)
    mapped = torch.func.vmap(lambda v: ours(v.unsqueeze(0)).squeeze(0))(draw(3, 1, side, side))
    torch.testing.assert_close(mapped, plain(draw(3, 1, side, side)))


def test_convolutions_of_other_kinds_stay_torchs():
    for other in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1),
        nn.Conv2d(3, 4, 3, padding="same"),
    ):
        assert type(compiled(nn.Sequential(other), Tape())[0]) is nn.Conv2d
    assert type(compiled(nn.Sequential(nn.Conv2d(8, 4, 3)))[0]) is nn.Conv2d


# The engine.


def fast_problem(**options):
    made = problem(**options)
    return made, FlatNetwork(nn.Sequential(nn.Identity(), made.body), compile=True)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("batch", "keep"), [(None, 0), (4, 2)])
def test_the_compiled_engine_equals_full_unrolling(monkeypatch, momentum, soft, batch, keep):
    monkeypatch.setattr("robustdd_bench.toolkit.fast.convolutions.WORTH", 1)
    p, network = fast_problem(soft=soft)
    taken = drawn_steps(STRATEGY, batch)
    exact = unrolled_gradients(*p.arguments(), taken, momentum=momentum)
    engine = AdjointEngine(network, momentum=momentum, keep=keep, note=pytest.fail)
    assert_equal(engine.gradients(*p.arguments()[1:], taken), exact)
    assert network.compiled


def test_a_tape_changes_no_bit_whatever_it_may_hold(monkeypatch):
    monkeypatch.setattr("robustdd_bench.toolkit.fast.convolutions.WORTH", 1)
    p, network = fast_problem(body=vgg11((3, 8, 8), CLASSES, width=8), channels=3)
    results, most = [], []
    for budget in (0, 5000, 10**9):
        kept = []
        monkeypatch.setattr(
            unroll, "kept_bytes", lambda tape, kept=kept: kept.append(_bytes(tape)) or kept[-1]
        )
        results.append(
            adjoint_gradients(
                network, *p.arguments()[1:], [Step()] * 3, momentum=0.5, tape_bytes=budget
            )
        )
        most.append(sum(kept))
    assert most[0] == 0 < most[1] <= 5000 < most[2]
    for one, other in itertools.pairwise(results):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert (a is None and b is None) or torch.equal(a, b)


def _bytes(kept):
    return sum(t.numel() * t.element_size() for held in kept.values() for t in held)


def test_a_replay_computes_no_expensive_convolution_again(monkeypatch):
    p, network = fast_problem(body=convnet((3, 8, 8), CLASSES, depth=2, width=16), channels=3)
    calls = []
    shape = type(network.body[0]._shape)
    for name in ("forward", "backward"):
        real = getattr(shape, name)

        def counted(self, *arguments, name=name, real=real):
            calls.append((name, self.number))
            return real(self, *arguments)

        monkeypatch.setattr(shape, name, counted)
    # The network's own step gives the image no gradient in the first pass.
    for budget in (10**9, 0):
        tape = network.tape
        with tape.writing(budget) as kept:
            unroll.step_gradient(network, p.start, p.images, p.labels, Step())
        calls.clear()
        with tape.reading(kept):
            unroll._step_graph(network, p.start, p.images, p.labels, Step())
        # The first layer is cheap and large; the second is taken from the tape.
        expensive = {("forward", 2), ("backward", 2)}
        assert ("forward", 1) in calls
        assert (expensive & set(calls) == set()) == (budget > 0)
        if budget == 0:
            assert expensive <= set(calls)
        assert not any(kept.values())


def test_wrong_kernels_are_found_out_by_the_first_step_and_not_used(monkeypatch):
    p, network = fast_problem()
    real = blocks.kernels(torch.device("cpu"))

    def wrong(name, tensors, *numbers):
        real(name, tensors, *numbers)
        if name == "second":
            tensors[-2].mul_(1.5)

    monkeypatch.setattr(blocks, "kernels", lambda *_: wrong)
    notes = []
    engine = AdjointEngine(network, note=notes.append)
    exact = unrolled_gradients(*p.arguments(), [Step()] * 3)
    assert_equal(engine.gradients(*p.arguments()[1:], [Step()] * 3), exact)
    assert len(notes) == 1
    assert notes[0].startswith("compiled kernels are not used: ")
    assert not network.compiled


def test_autocast_reaches_compiled_convolutions():
    network = convnet((3, 8, 8), 4, depth=2, width=8)
    fast = compiled(network, Tape())
    x = draw(2, 3, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(x), network(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert not torch.equal(fast(x), ours.float())
    torch.testing.assert_close(F.softmax(fast(x), 1), F.softmax(network(x), 1))

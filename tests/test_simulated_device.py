"""The simulated device itself: that it computes, refuses, counts and captures as a GPU would."""

import pytest
import torch
import torch.nn.functional as F
from simulated_device import CUDA, OnDevice
from torch import nn


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )


def gradients(network, x, y):
    loss = F.cross_entropy(network(x), y)
    return torch.autograd.grad(loss, list(network.parameters()))


def test_values_and_gradients_are_those_of_the_cpu(gpu, network) -> None:
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    expected = gradients(network, x, y)
    found = gradients(network.to(CUDA), x.to(CUDA), y.to(CUDA))
    for one, other in zip(found, expected, strict=True):
        assert one.device == CUDA
        assert isinstance(one, OnDevice)
        assert torch.equal(one.cpu(), other)
    assert gpu.launches > 10


def test_tensors_of_two_devices_do_not_mix(gpu) -> None:
    x = torch.zeros(3, device="cuda")
    for wrong in (
        lambda: x + torch.ones(3),
        lambda: torch.ones(3) * x,
        lambda: torch.ones(3)[x.long()],
        lambda: torch.stack([x, torch.zeros(3)]),
        lambda: F.one_hot(torch.tensor([1]), 3) + x,
    ):
        with pytest.raises(RuntimeError, match="device"):
            wrong()
    assert torch.equal((x + torch.tensor(2.0)).cpu(), torch.full((3,), 2.0))


def test_a_generator_has_to_be_of_the_same_device(gpu) -> None:
    here, there = torch.Generator(), torch.Generator(device="cuda")
    assert there.device == CUDA
    assert torch.rand(3, generator=there, device="cuda").device == CUDA
    x = torch.zeros(3, device="cuda")
    for wrong in (
        lambda: x.uniform_(generator=here),
        lambda: torch.rand(3, generator=there),
        lambda: torch.randperm(3, generator=here, device="cuda"),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            wrong()
    with pytest.raises(AssertionError, match="global generator"):
        x.normal_()


def test_waiting_and_copying_is_counted(gpu) -> None:
    x = torch.arange(4.0).to(CUDA)
    assert (gpu.copies, gpu.syncs) == (1, [])
    y = x * 2
    y[1:].add_(1)
    assert gpu.syncs == []
    for count, wait in enumerate(
        (
            lambda: float(y.sum()),
            y.cpu,
            y.tolist,
            lambda: bool((y > 1).any()),
            lambda: y[y > 1],
            lambda: torch.nonzero(y),
            lambda: torch.equal(y, y),
            lambda: torch.zeros(4).copy_(y),
        ),
        1,
    ):
        wait()
        assert len(gpu.syncs) == count
    with pytest.raises(TypeError):
        y.numpy()
    assert gpu.copies == 1
    assert y[[2, 0]].tolist() == y[torch.tensor([2, 0])].tolist()
    assert gpu.copies == 3


def capture(step):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def test_a_graph_computes_at_replay_from_what_the_memory_holds_then(gpu) -> None:
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")

    def step():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((leaf**3).sum(), leaf)
        total.add_(gradient)

    graph = capture(step)
    assert total.tolist() == [0.0] * 3
    graph.replay()
    assert total.tolist() == [3.0] * 3
    x.fill_(2.0)
    graph.replay()
    assert total.tolist() == [15.0] * 3
    assert gpu.replays == 2


def test_what_a_capture_made_holds_nothing_until_the_replay(gpu) -> None:
    x, made = torch.ones(3, device="cuda"), []
    graph = capture(lambda: made.append(x + 1))
    assert bool(made[0].isnan().all())
    graph.replay()
    assert made[0].tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: float(x.sum()),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.add_(torch.tensor([1.0, 2.0, 3.0]).to(CUDA)),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: x[[0, 1]],
        lambda x: x.mul_(torch.tensor(2.0)),
        lambda x: x.uniform_(generator=torch.Generator(device="cuda")),
        lambda x: torch.tensor([1.0], device="cuda"),
    ],
)
def test_what_cannot_be_captured_raises(gpu, wrong) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match=r"captur|registered"):
        capture(lambda: wrong(x))
    assert x.tolist() == [1.0] * 3
    assert not gpu.graphs


def test_a_graph_draws_other_numbers_at_each_replay(gpu) -> None:
    generator = torch.Generator(device="cuda")
    generator.manual_seed(3)
    x = torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        x.uniform_(generator=generator)
    expected = torch.Generator().manual_seed(3)
    for _ in range(2):
        graph.replay()
        assert torch.equal(x.cpu(), torch.empty(3).uniform_(generator=expected))


def test_memory_that_was_freed_after_a_capture_is_noticed(gpu) -> None:
    total = torch.zeros(3, device="cuda")

    def prepare():
        passing = torch.ones(3, device="cuda")
        return capture(lambda: total.add_(passing))

    graph = prepare()
    with pytest.raises(AssertionError, match="freed"):
        graph.replay()

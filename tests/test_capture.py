"""When steps are captured, what is done where that fails, and what a replay is held against.

A graph needs a GPU; here its place is taken by a stand-in that replays what the test says.
"""

import contextlib

import pytest
import torch

from robustdd_bench.toolkit.fast import capture
from robustdd_bench.toolkit.fast.capture import (
    Availability,
    Inputs,
    Replayer,
    availability,
    difference,
)
from robustdd_bench.toolkit.fast.precision import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Counter:
    """A step that adds its input, and a random number, to a total."""

    def __init__(self):
        self.total = torch.zeros(3)
        self.input = torch.ones(3)
        self.generator = torch.Generator().manual_seed(0)
        self.eager = 0

    def step(self):
        self.eager += 1
        self.total.add_(self.input + torch.rand(3, generator=self.generator))

    def replayer(self, device=CPU, note=None):
        return Replayer(device, [self.total], [self.generator], note)


def expected(count):
    counter = Counter()
    for _ in range(count):
        counter.step()
    return counter.total


@pytest.fixture
def graphs(monkeypatch):
    """A GPU whose graphs do what `made` says; returns the list of graphs that were captured."""
    captured = []

    class Graph:
        replay = staticmethod(lambda: None)

        def __init__(self):
            self.generators = []
            captured.append(self)

        def register_generator_state(self, generator):
            self.generators.append(generator)

        def pool(self):
            return (0, 1)

    class Stream:
        def __init__(self, *args):
            pass

        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def graph(found, pool=None, stream=None):
        found.shared = pool
        counter = Counter.now
        before, state = counter.total.clone(), counter.generator.get_state()
        yield
        counter.total.copy_(before)  # capturing computes nothing
        counter.generator.set_state(state)
        counter.eager -= 1
        found.replay = Graph.made

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    Counter.now = Counter()
    Graph.made = staticmethod(lambda: Counter.step(Counter.now))
    captured.append(Graph)
    return captured


def test_on_the_cpu_steps_are_simply_done() -> None:
    counter = Counter()
    replayer = counter.replayer()
    for _ in range(3):
        replayer.run("key", counter.step)
    assert not replayer.active
    assert not replayer.static
    assert counter.eager == 3
    assert torch.equal(counter.total, expected(3))


def test_a_rehearsal_does_the_first_step_of_a_key_again(monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")
    done = []
    replayer = Counter().replayer()
    for text in ("a", "b"):
        replayer.run(1, lambda text=text: done.append(text))
    replayer.run(2, lambda: done.append("c"))
    assert done == ["a", "a", "c"]
    assert replayer.static


def test_a_captured_step_counts_once_each_time(graphs) -> None:
    counter = Counter.now
    replayer = counter.replayer(CUDA)
    for call in range(4):
        replayer.run("key", counter.step)
        assert torch.equal(counter.total, expected(call + 1))
    assert replayer.active
    assert len(graphs) == 2  # the class, and one graph
    assert graphs[1].generators == [counter.generator]
    replayer.run("other", counter.step)
    assert len(graphs) == 3
    assert graphs[2].shared == (0, 1)
    assert torch.equal(counter.total, expected(5))


def test_a_graph_that_does_something_else_is_not_trusted(graphs) -> None:
    counter, said = Counter.now, []
    graphs[0].made = staticmethod(lambda: counter.total.add_(7.0))
    replayer = counter.replayer(CUDA, said.append)
    for call in range(3):
        replayer.run("key", counter.step)
        assert torch.equal(counter.total, expected(call + 1))
    assert not replayer.active
    (text,) = said
    assert text.startswith("steps are not captured as CUDA graphs: tensor 0 of the first replay")


def test_a_step_that_cannot_be_captured_runs_eagerly(graphs, monkeypatch) -> None:
    counter, said = Counter.now, []

    @contextlib.contextmanager
    def refuse(*args, **options):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    replayer = counter.replayer(CUDA, said.append)
    for call in range(3):
        replayer.run("key", counter.step)
        assert torch.equal(counter.total, expected(call + 1))
    assert said == [
        "steps are not captured as CUDA graphs: operation not permitted when stream is capturing; "
        "they run one by one"
    ]


def test_an_error_of_the_step_itself_is_not_swallowed(graphs) -> None:
    def wrong():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Counter.now.replayer(CUDA).run("key", wrong)


@pytest.mark.parametrize(
    ("mode", "device", "active", "reason"),
    [
        (None, CPU, False, "CUDA graphs need a CUDA device, and this is cpu"),
        (None, CUDA, True, "CUDA graphs"),
        ("auto", CUDA, True, "CUDA graphs"),
        ("off", CUDA, False, "ROBUSTDD_CAPTURE=off"),
        ("rehearse", CUDA, False, "ROBUSTDD_CAPTURE=rehearse"),
        ("nonsense", CUDA, True, "ROBUSTDD_CAPTURE='nonsense' is not known; steps are captured"),
    ],
)
def test_where_steps_are_captured(mode, device, active, reason, monkeypatch) -> None:
    if mode is None:
        monkeypatch.delenv(capture.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(capture.VARIABLE, mode)
    assert availability(device) == Availability(active, reason)


def test_what_a_replay_is_held_against() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert difference([zero], [one], [one]) is None
    assert difference([zero], [one * 1.04], [one]) is None
    assert "off by" in difference([zero], [one * 1.06], [one])
    assert "off by" in difference([zero], [zero], [one])
    assert "off by" in difference([zero], [one], [zero])
    assert "NaN" in difference([zero], [one * float("nan")], [one])
    # A step that moves a tensor by less than its rounding moves it by chance.
    assert difference([one], [one * (1 + 1e-7)], [one]) is None
    assert "off by" in difference([one], [one * (1 + 1e-6)], [one])
    # Where the step itself diverges, the replay may as well.
    assert difference([zero], [one * float("nan")], [one * float("nan")]) is None
    count = torch.tensor(3)
    assert difference([count], [count + 1], [count + 1]) is None
    assert "not that of" in difference([count], [count], [count + 1])


def test_inputs_of_one_name_shape_and_type_share_a_tensor() -> None:
    inputs = Inputs(CPU)
    first = inputs.put("a", torch.tensor([1, 2]))
    assert first.tolist() == [1, 2]
    again = inputs.put("a", torch.tensor([3, 4]))
    assert again is first
    assert first.tolist() == [3, 4]
    others = [
        inputs.put("b", torch.tensor([5, 6])),
        inputs.put("a", torch.tensor([5, 6, 7])),
        inputs.put("a", torch.tensor([5.0, 6.0])),
        inputs.put("a", torch.tensor([[5, 6]])),
    ]
    assert len({tensor.data_ptr() for tensor in (first, *others)}) == 5
    assert first.tolist() == [3, 4]


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_another_arithmetic_has_graphs_of_its_own(name, monkeypatch) -> None:
    # Without, a graph captured in TF32 answered where float32 was asked for: seen on an H200.
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")
    done = []
    replayer = Replayer(CPU, [])
    for i, arithmetic in enumerate(("default", name, "default", name)):
        with precision(arithmetic, CPU):
            replayer.run("key", lambda i=i: done.append(i))
    # A rehearsed step is the first that was given for its key.
    assert done == [0, 1, 0, 1]


def test_inputs_are_copies() -> None:
    value = torch.zeros(2)
    kept = Inputs(CPU).put("a", value)
    value.fill_(1.0)
    assert kept.tolist() == [0, 0]
    assert Inputs(CPU).put("a", torch.ones(1).expand(3)).tolist() == [1, 1, 1]


@pytest.mark.gpu
def test_a_step_with_random_numbers_is_replayed_on_the_gpu() -> None:
    def run(replayer_of, count=5):
        total = torch.zeros(1000, device="cuda")
        shift = torch.zeros(1000, device="cuda")
        generator = torch.Generator(device="cuda").manual_seed(3)

        def step():
            total.add_(shift + torch.rand(1000, device="cuda", generator=generator))

        replayer = replayer_of(total, generator)
        for i in range(count):
            shift.fill_(i)
            replayer.run("key", step)
        return total, replayer

    eager, _ = run(lambda total, generator: Replayer(CPU, [total], [generator]))
    found, replayer = run(lambda total, generator: Replayer(CUDA, [total], [generator]))
    assert replayer.active
    torch.testing.assert_close(found, eager)

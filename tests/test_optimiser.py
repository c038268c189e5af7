"""Adam and SGD without torch's classes are Adam and SGD, and go on from their own state."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from robustdd_bench.toolkit.fast.optimiser import Optimiser

KINDS = [("adam", 0.0), ("sgd", 0.0), ("sgd", 0.5)]


def torchs(kind: str, tensor: torch.Tensor, rate: float, momentum: float) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam([tensor], lr=rate)
    return torch.optim.SGD([tensor], lr=rate, momentum=momentum)


@pytest.mark.parametrize(("kind", "momentum"), KINDS)
@pytest.mark.parametrize("shape", [(), (3, 1, 2, 2)])
def test_steps_have_the_bits_of_torchs_class(
    kind: str, momentum: float, shape: tuple[int, ...]
) -> None:
    source = torch.Generator().manual_seed(0)
    ours, theirs = (torch.ones(shape) for _ in range(2))
    optimiser, expected = Optimiser(kind, ours, 0.1, momentum), torchs(kind, theirs, 0.1, momentum)
    for _ in range(20):
        gradient = torch.randn(shape, generator=source)
        optimiser.step(gradient)
        theirs.grad = gradient
        expected.step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "momentum"), KINDS)
def test_its_state_is_torchs_and_a_new_one_goes_on_from_it(kind: str, momentum: float) -> None:
    one, two = torch.ones(2, 3), torch.ones(2, 3)
    unbroken, expected = Optimiser(kind, one, 0.1, momentum), torchs(kind, two, 0.1, momentum)
    gradient = torch.full((2, 3), 0.5)
    for _ in range(3):
        unbroken.step(gradient)
        two.grad = gradient
        expected.step()
    fields = {f"mine.{k}": v for k, v in expected.state[two].items() if v is not None}
    state = unbroken.state("mine")
    assert state.keys() == fields.keys()
    assert all(torch.equal(state[key], fields[key]) for key in fields)
    resumed = Optimiser(kind, two, 0.1, momentum)
    kept = {key: value.clone() for key, value in state.items()}
    resumed.load(kept | {"other.exp_avg": torch.zeros(1)}, "mine")
    for optimiser in (unbroken, resumed):
        optimiser.step(-gradient)
    assert torch.equal(one, two)


def test_a_step_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from robustdd_bench.toolkit.fast.optimiser import Optimiser\n"
        "for kind in ('adam', 'sgd'):\n"
        "    Optimiser(kind, torch.ones(2), 0.1).step(torch.ones(2))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Global state that a plugin has to leave alone: the generators, and what its import changes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from robustdd_bench.conformance.findings import FailedCheckError
from robustdd_bench.guard import left_changed


def generator_states() -> dict[str, Any]:
    """The states of the global generators, comparable with `==`."""
    return {
        "torch's": torch.random.get_rng_state().numpy().tobytes(),
        "numpy's": repr(np.random.get_state()),  # noqa: NPY002
        "Python's": random.getstate(),
    }


def check_import(plugin: str) -> str:
    """Check that a plugin's import and its hooks have left everything as it was.

    Raises:
        FailedCheckError: they have not, in this process.
    """
    changed = left_changed(plugin)
    if changed:
        raise FailedCheckError("; ".join(changed))
    return "its import and its hooks leave the process as it was"


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """The names of what has changed."""
    return tuple(name for name, value in before.items() if after[name] != value)


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Give the global generators a known state, and the states they had back at the end."""
    before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on tensors this small, threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def outside(model: nn.Module) -> list[tuple[str, type[Any], tuple[str, ...], int]]:
    """What can be hung on the modules of a network: kinds, attributes, number of hooks."""
    return [
        (
            name,
            type(part),
            tuple(sorted(vars(part))),
            sum(len(value) for key, value in vars(part).items() if key.endswith("_hooks")),
        )
        for name, part in model.named_modules()
    ]

"""Global state that a plugin has to leave alone: generators, and the settings of torch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """The states of the global generators, comparable with `==`."""
    return {
        "torch's": torch.random.get_rng_state().numpy().tobytes(),
        "numpy's": repr(np.random.get_state()),  # noqa: NPY002
        "Python's": random.getstate(),
    }


def settings() -> dict[str, Any]:
    """The settings of torch that shape other people's results."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the gradient mode": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }


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
def kept_settings() -> Iterator[None]:
    """Undo what a plugin does to the settings of torch, so that the next check starts afresh."""
    dtype, grad, threads = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on tensors this small, threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Steps that are captured once and replayed.

The networks of this field are small: on a GPU a training step is some hundred kernels of a few
microseconds, and launching them one by one from Python takes longer than they do. A CUDA graph
holds all launches of a step and starts them with one call.

A step is a function without arguments. It reads and writes tensors that stay where they are, takes
no decision that depends on a tensor's value, and does not wait for the device; what differs from
one call to the next is copied into those tensors before it. Steps that differ in anything else
(a batch size, a family of augmentations, a learning rate) have keys of their own.

A graph is trusted after it has done once what the step does eagerly: its first replay is compared
with an eager run from the same state and the same random numbers. Where capturing fails or the two
differ, steps run eagerly from then on, and the reason is told. On the CPU they always do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.toolkit.fast.precision import settings

Step = Callable[[], None]

VARIABLE = "ROBUSTDD_CAPTURE"
MODES = ("auto", "off", "rehearse")
TOLERANCE = 0.05
"""Largest relative difference, in what a step changes, between a replay and the eager run. Kernels
that add in any order differ in the last bits, and the sign of a gradient near zero makes more of
it; a stale input or other random numbers make a difference of order one. Rounding is let pass: what
a step moves by no more, such as a bias before a norm that subtracts it, is moved by chance."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether steps are captured, and why not."""

    active: bool
    reason: str


def availability(device: torch.device) -> Availability:
    """Whether steps on a device are captured.

    The environment variable ROBUSTDD_CAPTURE may be "auto", "off", or "rehearse", which on any
    device calls the first function given for a key in place of every later one, as a graph would.
    """
    mode = os.environ.get(VARIABLE, "auto")
    if mode == "off":
        return Availability(False, f"{VARIABLE}=off")
    if mode == "rehearse":
        return Availability(False, f"{VARIABLE}=rehearse")
    if device.type != "cuda":
        return Availability(False, f"CUDA graphs need a CUDA device, and this is {device.type}")
    if mode not in MODES:
        return Availability(True, f"{VARIABLE}={mode!r} is not known; steps are captured")
    return Availability(True, "CUDA graphs")


class Inputs:
    """What differs from one call of a step to the next, in tensors that stay where they are.

    Args:
        device: where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: dict[Hashable, Tensor] = {}

    def put(self, name: str, value: Tensor) -> Tensor:
        """The same values in the tensor of that name and of the value's shape and type.

        It holds them until the next call with these. The host does not wait.
        """
        key = name, value.shape, value.dtype
        if key not in self._tensors:
            self._tensors[key] = torch.empty_like(value, device=self._device)
        return self._tensors[key].copy_(value, non_blocking=True)


class Replayer:
    """Runs steps, captured where that is possible.

    Args:
        device: where the steps compute.
        state: every tensor that a step changes.
        generators: every generator, of that device, that a step draws from.
        note: told, in one line, why steps are not captured although the device could.
    """

    def __init__(
        self,
        device: torch.device,
        state: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
        note: Callable[[str], object] | None = None,
    ) -> None:
        self._state = tuple(state)
        self._generators = tuple(generators)
        self._note = note or (lambda text: None)
        self._active = availability(device).active
        self._rehearsed = os.environ.get(VARIABLE) == "rehearse"
        self._device = device
        self._first: dict[Hashable, Step] = {}
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    @property
    def active(self) -> bool:
        """Whether steps are captured."""
        return self._active

    @property
    def static(self) -> bool:
        """Whether a step must find everything in the tensors of the first step of its key."""
        return self._active or self._rehearsed

    def run(self, key: Hashable, step: Step) -> None:
        """Do one step: replay the graph of its key, which is captured at the first call.

        Steps of the same key in another arithmetic (`precision`) have graphs of their own.
        """
        key = key, settings(self._device)
        if self._rehearsed:
            step = self._first.setdefault(key, step)
        if not self._active:
            step()
        elif key in self._graphs:
            self._graphs[key].replay()
        else:
            self._capture(key, step)

    def _capture(self, key: Hashable, step: Step) -> None:
        """Capture a step and do it once."""
        tensors, states = self._save()
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            # Libraries set themselves up in the first runs, which a graph must not hold.
            for _ in range(2):
                self._restore(tensors, states)
                step()
            expected = [tensor.clone() for tensor in self._state]
            self._restore(tensors, states)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        try:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                step()
            self._restore(tensors, states)
            graph.replay()
            problem = difference(tensors, self._state, expected)
        except (RuntimeError, NotImplementedError) as error:
            problem = " ".join(str(error).split())[:200]
        if problem is None:
            self._graphs[key] = graph
            self._pool = graph.pool()
            return
        self._active = False
        self._graphs.clear()
        self._note(f"steps are not captured as CUDA graphs: {problem}; they run one by one")
        self._restore(tensors, states)
        step()

    def _save(self) -> tuple[list[Tensor], list[Tensor]]:
        tensors = [tensor.clone() for tensor in self._state]
        return tensors, [generator.get_state() for generator in self._generators]

    def _restore(self, tensors: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        for tensor, saved in zip(self._state, tensors, strict=True):
            tensor.copy_(saved)
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def difference(
    before: Sequence[Tensor], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> str | None:
    """What is wrong with a replay, in a few words; None if it did what was expected.

    Args:
        before: the state from which both went.
        found: the state that the replay left.
        expected: the state that the eager run left.
    """
    for i, (start, one, other) in enumerate(zip(before, found, expected, strict=True)):
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return f"tensor {i} of the first replay is not that of an eager step"
            continue
        if bool(torch.isfinite(other).all()) and not bool(torch.isfinite(one).all()):
            return f"tensor {i} of the first replay holds NaN or infinity"
        apart = float((one.double() - other.double()).norm())
        moved = float((other.double() - start.double()).norm())
        rounding = torch.finfo(other.dtype).eps * float(other.double().norm())
        if apart > TOLERANCE * moved + rounding:
            return (
                f"tensor {i} of the first replay is off by {apart:.1e}, "
                f"where an eager step moves it by {moved:.1e}"
            )
    return None

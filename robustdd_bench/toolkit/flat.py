"""A network as a function of one flat parameter vector theta (P,)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.toolkit.blocks import compiled
from robustdd_bench.toolkit.compile import trusted
from robustdd_bench.toolkit.convolutions import Tape
from robustdd_bench.toolkit.instancenorm import with_fast_norm

Augment = Callable[[Tensor], Tensor]


class FlatNetwork:
    """`flat(theta, x)`: logits of a network whose parameters are the slices of `theta`.

    The network is what a task's factory builds: a preprocessing layer without parameters, then
    the network proper. Augmentation, where given, acts between the two, as in the reference
    implementations of the field.

    Args:
        network: `nn.Sequential(preprocessing, network)`; it is put into train mode and must have
            no buffers that training changes (BatchNorm statistics cannot follow a trajectory).
        compile: whether compiled kernels compute it (see `robustdd_bench.toolkit.blocks`).

    Raises:
        ValueError: the network keeps running statistics.
    """

    def __init__(self, network: nn.Module, *, compile: bool = False) -> None:
        if not isinstance(network, nn.Sequential) or len(network) != 2:
            raise ValueError("a flat network wants nn.Sequential(preprocessing, network)")
        self.preprocess: nn.Module = network[0]
        original: nn.Module = network[1]
        # The same values and names; only second derivatives take another, shorter way.
        self._eager = with_fast_norm(original)
        self.body: nn.Module = self._eager
        self.tape: Tape | None = None
        """Of a compiled network: keeps what a second pass would compute again."""
        if compile:
            self.tape = Tape()
            self.body = compiled(original, self.tape)
        for name, buffer in self.body.named_buffers():
            if buffer.is_floating_point() and "running" in name:
                raise ValueError(f"running statistics ({name}) cannot be part of a trajectory")
        parameters = dict(original.named_parameters())
        self.names = tuple(parameters)
        self.shapes = tuple(p.shape for p in parameters.values())
        self.sizes = tuple(p.numel() for p in parameters.values())
        self.size = sum(self.sizes)
        self._values = tuple(parameters.values())
        self._places: tuple[nn.Module | None, list[_Place]] = (None, [])

    @property
    def compiled(self) -> bool:
        """Whether compiled kernels compute it."""
        return self.tape is not None

    def eager(self) -> FlatNetwork:
        """The same network computed by torch's own kernels."""
        twin = copy.copy(self)
        twin.body, twin.tape = self._eager, None
        return twin

    def hold(
        self,
        compute: Callable[[FlatNetwork], Sequence[Tensor]],
        note: Callable[[str], object],
    ) -> None:
        """Compute with torch's kernels from now on, unless compiled ones do the same.

        Args:
            compute: computes with a network what it is for, once; it draws nothing.
            note: told, in one line, what is wrong.
        """
        if self.compiled and not trusted(
            lambda: compute(self), lambda: compute(self.eager()), note
        ):
            self.body, self.tape = self._eager, None

    def theta(self) -> Tensor:
        """A copy of the network's parameters as one vector (P,)."""
        return torch.cat([p.detach().flatten() for p in self._values])

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """The slices of `theta` by name, as views."""
        parts = theta.split(self.sizes)
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def load(self, theta: Tensor) -> None:
        """Write `theta` into the network it was made from."""
        with torch.no_grad():
            for target, part in zip(self._values, theta.split(self.sizes), strict=True):
                target.copy_(part.view_as(target))

    def __call__(self, theta: Tensor, x_BCHW: Tensor, augment: Augment | None = None) -> Tensor:
        """Logits (B,K) of pixels (B,C,H,W) under parameters `theta` (P,)."""
        features = self.preprocess(x_BCHW)
        if augment is not None:
            features = augment(features)
        with self._holding(theta):
            logits: Tensor = self.body(features)
        return logits

    @contextlib.contextmanager
    def _holding(self, theta: Tensor) -> Iterator[None]:
        """Within, the body's parameters are the slices of `theta`.

        This is `torch.func.functional_call` for one body again and again: that one looks for the
        places of the parameters in every call.
        """
        body, places = self._places
        if body is not self.body:
            places = _places(self.body)
            self._places = self.body, places
        values = self.parameters(theta)
        before = [holder[key] for holder, key, _ in places]
        try:
            for holder, key, name in places:
                holder[key] = values[name]
            yield
        finally:
            for (holder, key, _), parameter in zip(places, before, strict=True):
                holder[key] = parameter


_Place = tuple[dict[str, Any], str, str]
"""The parameters that a module holds, the key of one of them, and its name in the network."""


def _places(network: nn.Module) -> list[_Place]:
    """Where a network keeps its parameters; one that is shared has several places and one name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [
        (module._parameters, key, names[id(parameter)])
        for module in network.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None
    ]

"""Floating-point operations of a method, before it is run: what `--dry-run` and limits of time ask.

A method that can tell has `operations(facts)`; see `CountedDistiller`. What one image costs in a
forward pass, in a gradient and in a student step differentiated again is counted from the program
(`network_costs`); the rest is multiplied from the configuration. Matrix products and convolutions
are counted, by torch's formulas.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.protocol.networks import Builder, NetworkFactory
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.unroll import Step, step_products


@dataclass(frozen=True, slots=True)
class ImageCosts:
    """Operations for one image on one network."""

    forward: float
    weights: float
    """The gradient in the weights, forward pass included."""
    pixels: float
    """The gradient in the pixels, forward pass included."""
    products: float = 0.0
    """The gradient in the weights, and its products with a vector: in weights and image."""
    matched: float = 0.0
    """The gradient in the weights, and its products with a vector in the image alone."""

    def behind(self, layer: float) -> ImageCosts:
        """The same behind a linear layer without weights, which costs so much forward."""
        return ImageCosts(self.forward + layer, self.weights + layer, self.pixels + 2 * layer)

    def step(self, flavour: str, attack_steps: int) -> float:
        """A training step of a flavour of `robustdd_bench.toolkit.adversarial`."""
        if flavour == "natural":
            return self.weights
        search = attack_steps * self.pixels
        if flavour in ("pgd", "fast"):
            return search + self.weights
        reference = self.forward if flavour == "trades" else 0.0
        return reference + search + 2 * self.weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the operations of a method depend on, beside its configuration."""

    classes: int
    ipc: int
    """Images per class."""
    images: int
    """Images of the set."""
    pixels: int
    """C*H*W of an image."""
    train: int
    """Training images."""
    threat: ThreatModel
    augmentation: str
    """Of the students."""
    input: ImageCosts
    """The method's network in its input space."""
    network: ImageCosts
    """The method's network behind its preprocessing."""
    shape: tuple[int, ...] = ()
    """C, H, W of an image."""
    build: Callable[[str, Mapping[str, Any]], nn.Module] | None = None
    """`build(name, options)`: a registered network without preprocessing, on the CPU; for
    teachers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MakingOperations:
    """Operations of the stages that make a set."""

    experts: float = 0.0
    """Of all of them."""
    distill: float = 0.0


@runtime_checkable
class CountedDistiller(Protocol):
    """A method that can tell what it will compute."""

    def operations(self, facts: Facts) -> MakingOperations:
        """Operations of its experts and of the distillation."""


def count_operations(work: Callable[[], object]) -> float:
    """Floating-point operations of one call (of matrix products and convolutions)."""
    with _Counter() as counter:
        work()
    return float(counter.operations)


class _Counter(TorchDispatchMode):
    """Torch's formulas without its tracking of modules, which refuses `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out


def network_costs(
    build: Builder,
    options: Mapping[str, Any],
    shape_CHW: Sequence[int],
    classes: int,
    *,
    twice: bool,
) -> ImageCosts:
    """Count a network, without preprocessing.

    Args:
        build: its builder.
        options: of the builder.
        shape_CHW: C, H, W.
        classes: K.
        twice: count what is differentiated twice as well; it must have no running statistics.
    """
    return _network_costs(build, json.dumps(options), tuple(shape_CHW), classes, twice)


@functools.cache
def _network_costs(
    build: Builder, options: str, shape: tuple[int, ...], classes: int, twice: bool
) -> ImageCosts:
    count = 2
    images, labels = torch.zeros(count, *shape), torch.arange(count)
    none, cpu = Preprocessing("none"), torch.device("cpu")
    factory = NetworkFactory(build, json.loads(options), shape, classes, none, images, cpu)
    network = factory(0)
    weights = list(network.parameters())
    leaf = images.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            network(images)

    def in_weights() -> None:
        torch.autograd.grad(F.cross_entropy(network(images), labels), weights)

    def in_pixels() -> None:
        network.requires_grad_(False)
        torch.autograd.grad(F.cross_entropy(network(leaf), labels), leaf)
        network.requires_grad_(True)

    calls: list[Callable[[], object]] = [forward, in_weights, in_pixels]
    if twice:
        flat = FlatNetwork(network)
        theta = flat.theta()

        def in_image() -> None:
            theta = flat.theta().requires_grad_()
            loss = F.cross_entropy(flat(theta, leaf), labels)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            torch.autograd.grad(gradient.sum(), leaf)

        step = Step(None, None)
        calls += [lambda: step_products(flat, theta, images, labels, step, theta), in_image]
    return ImageCosts(*(count_operations(call) / count for call in calls))

"""Networks: the field's ConvNet, and the factory that builds any registered network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.guard import BUILTIN, blame_stranger, plain_text
from robustdd_bench.protocol.pooling import HalvingPool
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import isolated_rng

Depth = Annotated[int, Field(ge=1, le=100)]
Width = Annotated[int, Field(ge=1, le=65_536)]


def convnet(
    shape_CHW: Sequence[int],
    num_classes: int,
    *,
    depth: Depth = 3,
    width: Width = 128,
    norm: Literal["instance", "batch", "none"] = "instance",
) -> nn.Sequential:
    """The ConvNet of dataset distillation (Gidaris and Komodakis 2018; Zhao et al. 2021).

    `depth` blocks of [Conv 3x3 with bias, GroupNorm with one group a channel (the field's
    "instance norm"), ReLU, AvgPool 2], then a linear layer on the flattened features; PyTorch's
    default initialisation. With depth 3 and width 128 on CIFAR-10: 320,010 parameters.

    Images of 28x28 (MNIST, Fashion-MNIST) cannot be halved three times. There the first convolution
    pads by 3, to features of 32x32, as in the published code of dataset condensation: the network
    differs, pixels stay as they are, and the border is what zero is behind the preprocessing layer.
    Depths 1 and 2 fit 28x28 and do not pad: what they are has not changed.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.
        depth: number of blocks; height and width must be divisible by 2**depth, or be 28x28.
        width: channels of each block.
        norm: "instance" as in the field; "batch" for teachers whose running statistics are
            matched; "none".

    Raises:
        UsageError: the image is too small for that depth, or there is no such norm.
    """
    channels, height, width_px = shape_CHW
    if depth < 1 or width < 1:
        raise UsageError(f"convnet needs a positive depth and width, not {depth} and {width}")
    pad = 2 if (height, width_px) == (28, 28) and depth > 2 else 0
    sides = height + 2 * pad, width_px + 2 * pad
    if sides[0] % 2**depth or sides[1] % 2**depth:
        raise UsageError(
            f"convnet of depth {depth} needs images divisible by {2**depth}, "
            f"these are {height}x{width_px}"
        )
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1 + pad),
            *_norm(norm, width),
            nn.ReLU(),
            HalvingPool(),
        ]
        channels, pad = width, 0
    features = width * (sides[0] >> depth) * (sides[1] >> depth)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_classes))


def _norm(norm: str, width: int) -> list[nn.Module]:
    kinds: dict[str, list[nn.Module]] = {
        "instance": [nn.GroupNorm(width, width)],
        "batch": [nn.BatchNorm2d(width)],
        "none": [],
    }
    if norm not in kinds:
        raise UsageError(f"convnet has no norm {norm!r}; choose from {', '.join(kinds)}")
    return kinds[norm]


Builder = Callable[..., nn.Module]


class NetworkFactory:
    """`factory(seed)`: a fresh network with the preprocessing as its first layer.

    Weights are drawn on the CPU from a generator of their own, so they are the same on every
    device and the global generator is left alone.

    Args:
        build: `build(shape_CHW, num_classes, **options)`.
        options: options of the builder.
        shape_CHW: channels, height, width.
        num_classes: K.
        preprocessing: first layer.
        train_images: what a ZCA layer is fitted on; (N,C,H,W). They are not kept.
        device: where networks live.
        plugin: where the builder comes from.
        what: what it is called in messages.
        separate: whether each network gets a copy of the layer, so that no network can change
            another one. Methods draw a network in each iteration and share the layer.
        layer: the first layer, fitted already; None: it is made here.
    """

    def __init__(
        self,
        build: Builder,
        options: Mapping[str, Any],
        shape_CHW: Sequence[int],
        num_classes: int,
        preprocessing: Preprocessing,
        train_images: Tensor,
        device: torch.device,
        plugin: str = BUILTIN,
        what: str = "the network",
        *,
        separate: bool = False,
        layer: nn.Module | None = None,
    ) -> None:
        self._build = build
        self._plugin, self._what = plugin, what
        self._options = dict(options)
        self._shape = tuple(shape_CHW)
        self._classes = num_classes
        fitted = preprocessing.layer(train_images) if layer is None else layer
        self.layer = fitted.to(device)
        self._device = device
        self._separate = separate

    def __call__(self, seed: int) -> nn.Module:
        """A network on the device, in train mode."""
        with isolated_rng(seed), blame_stranger(self._plugin, self._what):
            try:
                network = self._build(self._shape, self._classes, **self._options)
            except TypeError as error:
                raise UsageError(
                    f"{self._what}: its options do not fit: {plain_text(error)}"
                ) from error
            if not isinstance(network, nn.Module):
                raise TypeError(f"it gives {type(network).__name__}, not a torch.nn.Module")
            # The host does not wait for the device: methods draw a network in each iteration.
            network = network.to(self._device, non_blocking=True)
        layer = copy.deepcopy(self.layer) if self._separate else self.layer
        return nn.Sequential(layer, network)


class Networks:
    """`networks(preprocessing)`: the factory of an architecture behind a preprocessing layer.

    It holds training images and nothing else of the data, so that a method may hold it. Each
    factory is made once: fitting ZCA takes seconds.

    Args:
        build: `build(shape_CHW, num_classes, **options)`.
        options: options of the builder.
        num_classes: K.
        train_images: what a ZCA layer is fitted on; (N,C,H,W).
        device: where networks live.
        plugin: where the builder comes from.
        what: what it is called in messages.
        separate: see `NetworkFactory`.
        layers: preprocessing layers that are fitted already.
    """

    def __init__(
        self,
        build: Builder,
        options: Mapping[str, Any],
        num_classes: int,
        train_images: Tensor,
        device: torch.device,
        plugin: str = BUILTIN,
        what: str = "the network",
        *,
        separate: bool = False,
        layers: Mapping[Preprocessing, nn.Module] | None = None,
    ) -> None:
        self._build = build
        self._options = dict(options)
        self._classes = num_classes
        self._images = train_images
        self._device = device
        self._plugin, self._what = plugin, what
        self._separate = separate
        self._layers = dict(layers or {})
        self._factories: dict[Preprocessing, NetworkFactory] = {}

    def __call__(self, preprocessing: Preprocessing) -> NetworkFactory:
        """The factory of networks behind that layer.

        Raises:
            UsageError: the layer does not fit the images.
        """
        if preprocessing not in self._factories:
            self._factories[preprocessing] = NetworkFactory(
                self._build,
                self._options,
                self._images.shape[1:],
                self._classes,
                preprocessing,
                self._images,
                self._device,
                self._plugin,
                self._what,
                separate=self._separate,
                layer=self._layers.get(preprocessing),
            )
        return self._factories[preprocessing]


class NetworkEntry(Protocol):
    """A registered network: its builder, and the plugin it is from."""

    @property
    def plugin(self) -> str:
        """Name of the plugin."""

    def load(self) -> Any:
        """The builder."""


class RegisteredNetworks:
    """Any registered network behind any preprocessing layer, for teachers.

    It holds training images and nothing else of the data, so that a method may hold it.

    Args:
        entries: the registered networks, by name.
        num_classes: K.
        train_images: (N,C,H,W).
        device: where networks live.
        layers: preprocessing layers that are fitted already.
    """

    def __init__(
        self,
        entries: Mapping[str, NetworkEntry],
        num_classes: int,
        train_images: Tensor,
        device: torch.device,
        layers: Mapping[Preprocessing, nn.Module] | None = None,
    ) -> None:
        self._entries = dict(entries)
        self._classes = num_classes
        self._images = train_images
        self._device = device
        self._layers = dict(layers or {})

    def __call__(
        self, name: str, options: Mapping[str, Any], preprocessing: Preprocessing
    ) -> NetworkFactory:
        """The factory of a network.

        Args:
            name: its registered name.
            options: of its builder.
            preprocessing: its first layer.

        Raises:
            UsageError: there is no such network, or the layer does not fit the images.
        """
        if name not in self._entries:
            raise unknown_name("network", name, self._entries)
        entry = self._entries[name]
        factory = NetworkFactory(
            entry.load(),
            options,
            self._images.shape[1:],
            self._classes,
            preprocessing,
            self._images,
            self._device,
            entry.plugin,
            f"network {name!r}",
            layer=self._layers.get(preprocessing),
        )
        self._layers.setdefault(preprocessing, factory.layer)
        return factory

"""What happens to pixels before the first weight: a layer of the network.

Being a layer, it is inside the gradient of every attack, and pixels stay in [0,1] outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.errors import UsageError

KINDS = ("none", "normalise", "zca")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A description of the layer, small enough to be stored with every set and record."""

    kind: str = "none"
    """"none", "normalise" (per channel) or "zca" (whitening fitted on the training images)."""
    mean: tuple[float, ...] = ()
    """normalise: a value per channel."""
    std: tuple[float, ...] = ()
    """normalise: a value per channel."""
    epsilon: float = 0.1
    """zca: added to the eigenvalues of the covariance."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"preprocessing must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.kind == "normalise" and not (
            self.mean
            and len(self.mean) == len(self.std)
            and all(math.isfinite(value) for value in (*self.mean, *self.std))
            and min(self.std) > 0
        ):
            raise UsageError("normalise needs a finite mean and a positive std for each channel")
        if self.kind == "zca" and not 0 < self.epsilon < math.inf:
            raise UsageError(f"zca needs a positive epsilon, not {self.epsilon}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `dataclasses.asdict`."""
        values = dict(fields)
        for key in ("mean", "std"):
            values[key] = tuple(float(x) for x in values.get(key, ()))
        if "epsilon" in values:
            values["epsilon"] = float(values["epsilon"])
        return cls(**values)

    def layer(self, train_images: Tensor) -> nn.Module:
        """Build the layer.

        Args:
            train_images: (N,C,H,W) in [0,1] or uint8, what ZCA is fitted on.
        """
        if self.kind == "none":
            return nn.Identity()
        if self.kind == "normalise":
            if len(self.mean) != train_images.shape[1]:
                raise UsageError(
                    f"normalise has {len(self.mean)} channels, the images {train_images.shape[1]}"
                )
            return Normalise(self.mean, self.std)
        return ZCA(*zca_statistics(train_images, self.epsilon))


class Normalise(nn.Module):
    """(x - mean) / std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise pixels."""
        return (x_BCHW - self.mean) / self.std


def zca_statistics(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean (d,) and whitening matrix (d,d) of images (N,C,H,W), d = C*H*W.

    T = U (S + epsilon)^(-1/2) U^T with U S U^T the unbiased covariance; computed in float64,
    returned as float32.
    """
    flat = images.flatten(1).double()
    if images.dtype == torch.uint8:
        flat = flat / 255
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(flat) - 1))
    matrix = (vectors * (values.clamp_min(0) + epsilon).rsqrt()) @ vectors.T
    return mean.float(), matrix.float()


class ZCA(nn.Module):
    """(x - mean) T on flattened pixels."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Whiten pixels."""
        return ((x_BCHW.flatten(1) - self.mean) @ self.matrix).view_as(x_BCHW)

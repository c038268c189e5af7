"""A teacher: a trained network that is stored with a distilled set and labels what students see.

Methods such as SRe2L, RDED and GUARD hand on more than images: every view of an image that a
student sees (augmented, mixed with another one) is labelled by a network trained on all the real
data. The field stores those labels, a distribution for each view of each epoch; here the network
is stored and labels the views as they are drawn, which gives the same labels from a seed. A set
with a teacher has hard labels as well. Which of them students are taught is up to the track
(`robustdd_bench.protocol.tracks.TeachingSpec`).

Shapes: K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.protocol.hashing import hash_tensor
from robustdd_bench.strict import MAX_TENSORS

_COUNTER = "num_batches_tracked"
"""What batch norm counts and evaluation never reads; it is not stored."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A trained network, by its registered name and its weights.

    It stands behind the preprocessing layer that the students of the set have.
    """

    network: str
    """Name of a registered network."""
    options: Mapping[str, Any]
    """Options of its builder; JSON values."""
    weights: Mapping[str, Tensor]
    """Its parameters and running statistics, float32, by their names."""

    def __repr__(self) -> str:
        return f"Teacher({self.network!r}, {self.parameters:,} values)"

    @classmethod
    def of(cls, network: str, options: Mapping[str, Any], body: nn.Module) -> Teacher:
        """The teacher that a trained network is.

        Args:
            network: its registered name.
            options: what it was built with.
            body: the network, without its preprocessing layer.
        """
        state = body.state_dict()
        weights = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in state.items()
            if tensor.is_floating_point()
        }
        return cls(network=network, options=dict(options), weights=weights)

    @property
    def parameters(self) -> int:
        """How many numbers are stored."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def stored_bytes(self) -> int:
        """What they weigh, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.weights.values())

    def shapes(self) -> dict[str, list[int]]:
        """The shape of each tensor."""
        return {name: list(tensor.shape) for name, tensor in sorted(self.weights.items())}

    def sha256(self) -> str:
        """A hash of network, options and weights."""
        digest = hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            hash_tensor(digest, tensor, name)
        return digest.hexdigest()

    def spec(self) -> dict[str, Any]:
        """Network and options, as JSON values."""
        return {"network": self.network, "options": dict(self.options)}

    def check(self) -> None:
        """Raise RunFailedError unless it can be stored: finite float32 weights, JSON options."""
        if not self.weights or len(self.weights) > MAX_TENSORS:
            raise RunFailedError(
                f"a teacher must have between 1 and {MAX_TENSORS} tensors, not {len(self.weights)}"
            )
        for name, tensor in self.weights.items():
            if type(name) is not str or tensor.dtype != torch.float32:
                raise RunFailedError(f"the teacher's {name} must be float32, not {tensor.dtype}")
            if not bool(torch.isfinite(tensor).all()):
                raise RunFailedError(f"the teacher's {name} holds NaN or infinity")
        try:
            json.dumps(self.spec(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RunFailedError(f"the teacher's options must be JSON values: {error}") from error

    def load_into(self, body: nn.Module) -> nn.Module:
        """Give a network these weights.

        Args:
            body: a fresh network of `network` and `options`, without a preprocessing layer; it may
                lie on the device "meta", where it weighs nothing.

        Returns:
            The network in eval mode, its parameters frozen.

        Raises:
            UsageError: the weights are not those of such a network.
        """
        wanted = {
            name: tensor for name, tensor in body.state_dict().items() if tensor.is_floating_point()
        }
        if {name: list(tensor.shape) for name, tensor in sorted(wanted.items())} != self.shapes():
            raise UsageError(
                f"the stored teacher does not fit network {self.network!r} with options "
                f"{dict(self.options)}: its tensors have other names or shapes"
            )
        counters = {
            name: torch.zeros((), dtype=torch.int64)
            for name in body.state_dict()
            if name.rpartition(".")[2] == _COUNTER
        }
        body.load_state_dict({**self.weights, **counters}, strict=True, assign=True)
        return body.eval().requires_grad_(False)

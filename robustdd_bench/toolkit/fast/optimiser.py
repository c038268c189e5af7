"""Adam and SGD on one tensor, by torch's own functions: the same numbers without its classes.

The first object of a class of `torch.optim` imports PyTorch's compiler, which takes more than a
second. Their state is a few tensors, which go into a checkpoint as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class Optimiser:
    """Gradient descent on one tensor.

    Args:
        kind: "adam", with PyTorch's defaults; anything else is SGD.
        tensor: what is moved, in place; it does not require grad.
        rate: learning rate.
        momentum: of SGD.
    """

    def __init__(self, kind: str, tensor: Tensor, rate: float, momentum: float = 0.0) -> None:
        self._kind, self._tensor = kind, tensor
        self._rate, self._momentum = rate, momentum
        self._state: dict[str, Tensor] = {}

    def step(self, gradient: Tensor) -> None:
        """One step against the gradient, which has the tensor's shape."""
        if self._kind == "adam":
            self._adam(gradient)
        else:
            self._sgd(gradient)

    def _adam(self, gradient: Tensor) -> None:
        state = self._state
        if not state:
            state["step"] = torch.tensor(0.0)  # on the CPU, so that nothing waits for the device
            state["exp_avg"] = torch.zeros_like(self._tensor)
            state["exp_avg_sq"] = torch.zeros_like(self._tensor)
        adam(
            [self._tensor], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [],
            [state["step"]], amsgrad=False, beta1=0.9, beta2=0.999, lr=self._rate,
            weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip

    def _sgd(self, gradient: Tensor) -> None:
        velocity: list[Tensor | None] = [self._state.get("momentum_buffer")]
        sgd(
            [self._tensor], [gradient], velocity, weight_decay=0.0, momentum=self._momentum,
            lr=self._rate, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        if velocity[0] is not None:
            self._state["momentum_buffer"] = velocity[0]

    def state(self, name: str) -> dict[str, Tensor]:
        """Its state as tensors for a checkpoint, by `<name>.<field>`."""
        return {f"{name}.{field}": value.detach() for field, value in self._state.items()}

    def load(self, tensors: Mapping[str, Tensor], name: str) -> None:
        """The inverse of `state`; tensors of other names are passed over."""
        for key, value in tensors.items():
            owner, _, field = key.partition(".")
            if owner == name:
                # Adam keeps its step count on the CPU, its moments beside the tensor.
                device = "cpu" if field == "step" else self._tensor.device
                self._state[field] = value.to(device)

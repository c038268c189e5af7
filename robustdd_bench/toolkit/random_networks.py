"""Networks that are drawn anew for each iteration, for methods that match over random networks.

A captured step reads weights where it found them when it was captured. So the tensors of one
network stay, and the weights of every later one are copied into them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.fast.blocks import compiled
from robustdd_bench.toolkit.fast.compile import SAMPLE, trusted
from robustdd_bench.toolkit.fast.convolutions import Tape
from robustdd_bench.toolkit.inputspace import split_network


class RedrawnNetwork:
    """A network of a task, in train mode, whose tensors stay where they are.

    Where the task wants compiled kernels, they compute it.

    Args:
        task: gives the networks; all have one architecture.
        seed: of the first.
        order: of the derivatives that the method takes, 1 or 2; kernels are held against torch's
            in these, and a network need not have more.
        note: told, in one line, why kernels are not used although the task wants them.
    """

    def __init__(
        self,
        task: DistillTask,
        seed: int,
        *,
        order: int = 1,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._task, self._order = task, order
        self.layer, body = split_network(task.network(seed))
        self.body = body.train()
        if task.compile:
            fast = compiled(body, Tape() if order > 1 else None)
            if trusted(lambda: self._sample(fast), lambda: self._sample(body), note):
                self.body = fast

    def _sample(self, body: nn.Module) -> list[Tensor]:
        """Derivatives of a network at a few training images."""
        weights = [p for p in body.parameters() if p.requires_grad]
        with _kept_buffers(body):
            x = self.layer(self._task.pixels(torch.arange(SAMPLE) % len(self._task.images)))
            x = x.detach().requires_grad_()
            first = torch.autograd.grad(
                body(x).logsumexp(1).sum(),
                [x, *weights],
                create_graph=self._order > 1,
                allow_unused=True,
            )
            found = [gradient for gradient in first if gradient is not None]
            if self._order > 1:
                size = torch.stack([gradient.square().sum() for gradient in found]).sum()
                found += torch.autograd.grad(size, x)
        return found

    def draw(self, seed: int) -> None:
        """Make it the network of a seed: its parameters and buffers."""
        fresh = _tensors(split_network(self._task.network(seed))[1])
        for kept, new in zip(self.tensors(), fresh, strict=True):
            kept.copy_(new)

    def tensors(self) -> list[Tensor]:
        """Its parameters and buffers, as they are and detached: what training changes."""
        return _tensors(self.body)


@contextlib.contextmanager
def _kept_buffers(network: nn.Module) -> Iterator[None]:
    """Leave running statistics as they were."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in network.parameters()), *network.buffers()]

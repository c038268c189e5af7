"""Networks that are drawn anew for each iteration, for methods that match over random networks.

A captured step reads weights where it found them when it was captured. So the tensors of one
network stay, and the weights of every later one are copied into them.
"""

from __future__ import annotations

from torch import Tensor, nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.inputspace import split_network


class RedrawnNetwork:
    """A network of a task, in train mode, whose tensors stay where they are.

    Args:
        task: gives the networks; all have one architecture.
        seed: of the first.
    """

    def __init__(self, task: DistillTask, seed: int) -> None:
        self._task = task
        self.layer, self.body = split_network(task.network(seed))
        self.body.train()

    def draw(self, seed: int) -> None:
        """Make it the network of a seed: its parameters and buffers."""
        fresh = _tensors(split_network(self._task.network(seed))[1])
        for kept, new in zip(self.tensors(), fresh, strict=True):
            kept.copy_(new)

    def tensors(self) -> list[Tensor]:
        """Its parameters and buffers, as they are and detached: what training changes."""
        return _tensors(self.body)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in network.parameters()), *network.buffers()]

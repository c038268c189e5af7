"""A queue of networks in training, each with its momentum and its running accuracy.

It begins with a few fresh networks; at regular intervals a fresh one is put in, and the oldest
leaves where the queue is full. Which networks are in it after so many iterations follows from the
number, so only tensors have to be saved: those of the networks that there are, at most `capacity`.

One network computes: what it is loaded with and stored to are slots of tensors that stay where they
are, so that its steps can be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustdd_bench.distillers import DistillTask
from robustdd_bench.toolkit.random_networks import RedrawnNetwork


class NetworkQueue:
    """Networks of a task, numbered as they come: number j is drawn with the seed of j.

    Args:
        task: gives the networks.
        start: how many there are before the first iteration.
        fresh_every: a fresh network comes before iterations 0, `fresh_every`, twice that, ...
        capacity: how many there may be.
        iterations: how many will be done; no more room is taken than they fill.
        note: told why compiled kernels are not used although the task wants them.
    """

    def __init__(
        self,
        task: DistillTask,
        *,
        start: int,
        fresh_every: int,
        capacity: int,
        iterations: int,
        note: Callable[[str], object],
    ) -> None:
        self._task, self._start, self._every = task, start, fresh_every
        self._network = RedrawnNetwork(task, task.seeds.seed("network", 0), note=note)
        self._capacity = min(capacity, start + 1 + max(iterations - 1, 0) // fresh_every)
        self._weights = [p for p in self.body.parameters() if p.requires_grad]
        self.velocity = [torch.zeros_like(weight) for weight in self._weights]
        self.counts = torch.zeros(2, dtype=torch.int64, device=task.device)
        """Of the network that computes: training images that it got right, and all of them."""
        tensors = self._network.tensors()
        self._kept = len(tensors)
        self._working = [*tensors, *self.velocity, self.counts]
        self._slots = [t.new_zeros((self._capacity, *t.shape)) for t in self._working]
        for number in range(min(start, self._capacity)):
            self._put(number)

    @property
    def layer(self) -> nn.Module:
        """The preprocessing layer of all of them."""
        return self._network.layer

    @property
    def body(self) -> nn.Module:
        """The network that computes, after its preprocessing layer."""
        return self._network.body

    def changing(self) -> list[Tensor]:
        """All that computing changes."""
        return list(self._working)

    def _pushed(self, iteration: int) -> int:
        return self._start + 1 + iteration // self._every

    def begin(self, iteration: int) -> list[int]:
        """Put in the network that is due before an iteration.

        Returns:
            The numbers of those that are in the queue now, the oldest first.
        """
        pushed = self._pushed(iteration)
        if iteration % self._every == 0:
            self._put(pushed - 1)
        return list(range(max(0, pushed - self._capacity), pushed))

    def _put(self, number: int) -> None:
        """Make a network the fresh one of its number."""
        slot = number % self._capacity
        self._network.draw(self._task.seeds.seed("network", number))
        for kept in self._slots:
            kept[slot].zero_()
        self._copy(slot, range(self._kept), out=True)

    def _copy(self, slot: int, which: range, *, out: bool) -> None:
        for place in which:
            here, there = self._working[place], self._slots[place][slot]
            (there if out else here).copy_(here if out else there)

    def load(self, number: int) -> None:
        """Compute with a network of the queue from now on."""
        self._copy(number % self._capacity, range(len(self._working)), out=False)

    def store(self, number: int) -> None:
        """Keep what has become of it."""
        self._copy(number % self._capacity, range(len(self._working)), out=True)

    def reset_accuracies(self) -> None:
        """Begin to count anew, for all networks."""
        self._slots[-1].zero_()

    def accuracy(self) -> Tensor:
        """Accuracy of the network that computes on the batches that it was trained on since its
        count began, in per cent; 0 before the first. A scalar on the device.
        """
        return 100 * self.counts[0] / self.counts[1].clamp_min(1)

    def train_on(
        self, x_BCHW: Tensor, y: Tensor, *, rate: float, momentum: float, weight_decay: float
    ) -> None:
        """A step of SGD on the cross-entropy of a batch, as torch's optimiser takes it.

        Args:
            x_BCHW: the batch, in the network's input space.
            y: labels (B,) int64.
            rate: learning rate.
            momentum: of the weights.
            weight_decay: of the weights.
        """
        self.body.requires_grad_(True).train()
        logits = self.body(x_BCHW)
        gradients = torch.autograd.grad(cross_entropy(logits, y), self._weights, allow_unused=True)
        with torch.no_grad():
            for weight, velocity, gradient in zip(
                self._weights, self.velocity, gradients, strict=True
            ):
                if gradient is not None:
                    velocity.mul_(momentum).add_(gradient.add(weight, alpha=weight_decay))
                    weight.add_(velocity, alpha=-rate)
            self.counts[0].add_((logits.argmax(1) == y).sum())
            self.counts[1].add_(len(y))
        self.freeze()

    def freeze(self) -> None:
        """Leave its statistics alone and ask for no gradient in its weights from now on."""
        self.body.requires_grad_(False).eval()

    def state(self, iteration: int) -> dict[str, Tensor]:
        """All that changes, after so many iterations: no more than there are networks."""
        used = self._used(iteration)
        return {f"queue.{place}": slots[:used] for place, slots in enumerate(self._slots)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for place, slots in enumerate(self._slots):
            kept = state[f"queue.{place}"]
            slots[: len(kept)].copy_(kept)

    def _used(self, iteration: int) -> int:
        pushed = self._start if iteration == 0 else self._pushed(iteration - 1)
        return min(pushed, self._capacity)

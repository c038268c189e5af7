"""The loop of a distillation, written once: resuming, progress, values, checks, pictures, saving.

A method says in a `Distillation` what its state is, what one iteration does and which set it stands
for; `iterate` does the rest. A run that is killed and resumed ends in the set that it would have
made, if what iteration i draws depends on the seed and on i alone
(`task.seeds.generator(purpose, i)`): then no generator has to be saved.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet, DistillTask, Reporter
from robustdd_bench.toolkit.checkpoint import Checkpoint, require_finite


class Distillation(abc.ABC):
    """A distillation in progress."""

    @abc.abstractmethod
    def step(self, iteration: int) -> Mapping[str, float | Tensor]:
        """Do one iteration.

        Args:
            iteration: 0 for the first.

        Returns:
            What to report of it, each value one number. Give tensors as they are: they are read
            later, so that the host does not wait for the device.
        """

    @abc.abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """All that changes from one iteration to the next, by names that stay."""

    @abc.abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, now on the task's device."""

    @abc.abstractmethod
    def current(self) -> DistilledSet:
        """The set as it stands, in pixel space."""


def iterate(
    distillation: Distillation,
    task: DistillTask,
    reporter: Reporter,
    *,
    title: str,
    total: int,
    key: str,
    checkpoint_seconds: float,
    check_every: int = 50,
) -> DistilledSet:
    """Run a distillation to its end, from its last checkpoint if there is one.

    Args:
        distillation: before its first iteration.
        task: names device and folder; the checkpoint is `<title>.safetensors` in its `work_dir`.
        reporter: told of progress, values and images.
        title: of the progress bar.
        total: how many iterations.
        key: names everything that shapes the state (method, configuration, images per class, seed);
            a checkpoint with another key is not resumed.
        checkpoint_seconds: how much work may be lost at most; 0 saves after each iteration.
        check_every: after how many iterations state and values have to be finite; each time the
            host waits for the device.

    Returns:
        The set after the last iteration.

    Raises:
        RunFailedError: the state or a value became NaN or infinite.
    """
    checkpoint = Checkpoint(task.work_dir / f"{title}.safetensors", checkpoint_seconds, key)
    saved = checkpoint.load(task.device)
    done = 0
    if saved is not None:
        done, state = saved
        distillation.restore(state)
    with reporter.progress(title, total) as bar:
        bar.advance(done)
        if done == 0:
            reporter.images(0, total, distillation.current)
        for iteration in range(done, total):
            values = distillation.step(iteration)
            finished = iteration + 1
            reporter.metrics(finished, **values)
            if finished % check_every == 0 or finished == total:
                require_finite(finished, **_floating({**distillation.state(), **values}))
            # Before the checkpoint, so that a run that resumes from it lacks no picture.
            reporter.images(finished, total, distillation.current)
            checkpoint.maybe_save(finished, distillation.state())
            bar.advance()
    return distillation.current()


def _floating(values: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}

"""Experts: networks trained on the real data whose weights, epoch by epoch, are the trajectory.

A trajectory is phi_0 .. phi_E with phi_0 = theta_0 and, after every step of gradient descent,
phi <- m phi + (1 - m) theta: the exponential moving average with which MAT smooths the weights of
adversarially trained experts (arXiv 2503.12069); a snapshot of phi is kept once an epoch. m = 0
gives the plain trajectory of MTT (Cazenavette et al. 2022).

How an expert is trained is in `robustdd_bench.toolkit.trajectories.recipe`, its training in
`robustdd_bench.toolkit.trajectories.expert_training`.

Only the epochs that matching can use are trained. A trajectory is a safetensors file, written when
its expert ends, in a folder named by a hash of everything that shaped it; runs share the folders.

Seeds leave the method's name out, so two methods with the same recipe have the same experts.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.distillers import DistillTask, Part, Reporter
from robustdd_bench.errors import UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.stored import key_of, training_facts
from robustdd_bench.toolkit.trajectories.expert_training import TrainedExpert, train_expert
from robustdd_bench.toolkit.trajectories.recipe import ExpertRecipe, family_seeds

__all__ = [
    "ExpertRecipe",
    "ExpertStore",
    "TrainedExpert",
    "Trajectories",
    "family_seeds",
    "train_expert",
]

# Raise when a change of the training changes trajectories, so that stored ones are not reused.
TRAINER_VERSION = 1
_FORMAT = "robustdd-expert-1"


class ExpertStore:
    """The stored experts of one recipe on one task.

    Args:
        task: gives data, network, seeds, device and the shared folder.
        recipe: how experts are trained.
    """

    def __init__(self, task: DistillTask, recipe: ExpertRecipe) -> None:
        self.task = task
        self.recipe = recipe.canonical()
        self.seeds = family_seeds(task.seeds)
        self.key = key_of(self._description())
        self.folder = task.store_dir / "experts" / self.key

    def _description(self) -> dict[str, Any]:
        # Experts are known by how they were computed; eager ones as before there was a choice.
        compiled = {"compile": True} if self.task.compile else {}
        return compiled | {
            "trainer": TRAINER_VERSION,
            "recipe": self.recipe.description(),
            **training_facts(self.task, self.seeds, self.task.network(0)),
        }

    def parts(self, count: int) -> list[Part]:
        """One part an expert."""
        return [Part(f"expert-{k}", self.folder / f"expert-{k}.safetensors") for k in range(count)]

    def train(self, part: Part, reporter: Reporter) -> None:
        """Train the expert of `part` and write its trajectory.

        Raises:
            RunFailedError: the expert diverged or collapsed; nothing is written.
        """
        index = int(part.name.rpartition("-")[2])
        expert = train_expert(self.task, self.recipe, self.seeds, index, reporter)
        metadata = {
            "format": _FORMAT,
            "description": json.dumps(self._description(), sort_keys=True),
            "train_accuracy": f"{expert.accuracy:.6f}",
            "losses": json.dumps([round(x, 6) for x in expert.losses]),
            "guard": json.dumps([round(x, 6) for x in expert.guard]),
        }
        write_safetensors(part.output, {"snapshots": expert.snapshots}, metadata)

    def load(self, count: int) -> Trajectories:
        """The trajectories of experts 0..count-1.

        Raises:
            UsageError: an expert is missing or damaged.
        """
        loaded = []
        size = FlatNetwork(self.task.network(0)).size
        for part in self.parts(count):
            tensors, metadata = read_safetensors(part.output)
            snapshots = tensors.get("snapshots")
            if metadata.get("format") != _FORMAT or snapshots is None:
                raise UsageError(f"{part.output} is not a stored expert; delete it")
            if snapshots.ndim != 2 or len(snapshots) != self.recipe.epochs + 1:
                raise UsageError(
                    f"{part.output} holds {len(snapshots) - 1} epochs, not {self.recipe.epochs}; "
                    "delete it"
                )
            if snapshots.shape[1] != size or snapshots.dtype != torch.float32:
                raise UsageError(
                    f"{part.output} does not hold the {size} weights of this network; delete it"
                )
            # The last alone: the others stay on the disk until matching wants them.
            if not bool(torch.isfinite(snapshots[-1]).all()):
                raise UsageError(f"{part.output} holds NaN or infinity; delete it")
            loaded.append(snapshots)
        return Trajectories(loaded, self.task.device, self.key)


class Trajectories:
    """Snapshots (epochs+1, P) of several experts, read from memory-mapped files.

    On a GPU they are moved there at once where they take no more than `RESIDENT` of its free
    memory: an iteration then waits for no transfer.
    """

    RESIDENT = 0.25

    def __init__(self, snapshots: list[Tensor], device: torch.device, key: str = "") -> None:
        self.key = key
        self._device = device
        if device.type == "cuda":
            size = sum(each.numel() * each.element_size() for each in snapshots)
            if size <= self.RESIDENT * torch.cuda.mem_get_info(device)[0]:
                snapshots = [each.to(device) for each in snapshots]
        self._snapshots = snapshots

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def epochs(self) -> int:
        """The last epoch of which every expert has a snapshot."""
        return min(len(snapshots) for snapshots in self._snapshots) - 1

    def at(self, expert: int, epoch: int) -> Tensor:
        """The weights (P,) of an expert after `epoch` epochs, on the device."""
        return self._snapshots[expert][epoch].to(self._device, non_blocking=True)

"""The interface of a distillation method: all that its author has to read.

What a method gives back is `DistilledSet`, in a module of its own (protocol/distilled_set.py).

Shapes: N training images, n distilled images, C channels, H height, W width, K classes.
Pixels are in [0,1] at every boundary; normalisation and ZCA are layers of the network.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.distilled_set import DistilledSet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import Seeds

__all__ = [
    "DistillTask",
    "DistilledSet",
    "Distiller",
    "Part",
    "Progress",
    "Reporter",
    "StagedDistiller",
]


class Progress(Protocol):
    """A progress bar (or its plain-text stand-in)."""

    def advance(self, steps: int = 1) -> None:
        """Move on by `steps`."""


class Reporter(Protocol):
    """How a method tells what it is doing: all that it can call. Nothing makes the device wait.

    `robustdd_bench.toolkit.loop.iterate` does it for methods that iterate.
    """

    def progress(self, title: str, total: int) -> contextlib.AbstractContextManager[Progress]:
        """A progress bar of `total` steps, nested in the one that is open."""

    def metrics(self, step: int, **values: float | Tensor) -> None:
        """Values of one step; tensors are read later, in batches."""

    def note(self, text: str) -> None:
        """A line for the run's log."""

    def images(self, step: int, total: int, current: Callable[[], DistilledSet]) -> None:
        """The set after `step` of `total` steps, 0 before the first.

        A dozen steps are shown, more at the beginning: call it after every step, before the
        checkpoint of that step is saved. `current` makes the set, in pixel space, and is called
        only where it is shown.
        """

    def work(self, items: int, unit: str) -> None:
        """So many more items have been worked through, by this process and not before a kill.

        They make the throughput of the record. Where nothing is told, the steps of the outermost
        progress bar are counted.

        Args:
            items: e.g. the training images that were passed through a network.
            unit: their plural, e.g. "images"; the same in all parts of a method.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillTask:
    """What a method gets: training data, and what is made of them.

    Neither the test split nor a validation split can be reached from it, nor from the reporter:
    not by attributes, closures, bound methods, containers or the memory that tensors share. A test
    walks all of that. What runs in one process can still find anything in it: the variables of
    modules, the frames of callers and the garbage collector's lists lead everywhere, and the data
    files can be read from disk. Admission therefore compares every distilled image with the test
    images (docs/submitting.md).
    """

    images: Tensor
    """Training images (N,C,H,W) on `device`: uint8, or float32 in [0,1]."""
    labels: Tensor
    """Training labels (N,) int64 on `device`."""
    num_classes: int
    ipc: int | None
    """Images per class to make; None on request for everything (the full-data reference)."""
    network: Callable[[int], torch.nn.Module]
    """`network(seed)`: a freshly initialised network on `device`, pixels in, logits out."""
    preprocessing: Preprocessing
    """What the first layer of `network` does to pixels."""
    threat: ThreatModel
    """The threat model of the track, at its headline eps."""
    augmentation: str
    """The augmentation of the track's students, e.g. "none" or a DSA strategy."""
    device: torch.device
    seeds: Seeds
    """The only source of randomness. Under seed scheme 2 of a track, the seeds of students and
    attacks do not follow from it."""
    work_dir: Path
    """A folder of this run's for resumable state; kept when the run is killed."""
    store_dir: Path
    """A folder shared by all runs, for what is keyed by a hash of everything that shaped it."""
    data_sha256: str
    """Hash of images and labels, for keys of what is shared between runs."""
    allow_flip: bool = True
    """Whether mirrored images keep their label (no for digits)."""
    network_with: Callable[[Preprocessing], Callable[[int], torch.nn.Module]] | None = None
    """`network_with(preprocessing)`: what `network` is, behind another preprocessing layer."""
    networks: (
        Callable[[str, Mapping[str, Any], Preprocessing], Callable[[int], torch.nn.Module]] | None
    ) = None
    """`networks(name, options, preprocessing)`: as `network`, of any registered network; for
    teachers. See `registered_network`."""
    compile: bool = False
    """Whether the run computes with compiled kernels (`robustdd_bench.toolkit.fast.blocks`), where
    the method has a use for them; a method that has none may pass over it."""

    def behind(self, preprocessing: Preprocessing) -> DistillTask:
        """The same task with its networks behind another preprocessing layer.

        A set made so has to name that preprocessing (`DistilledSet.preprocessing`).

        Raises:
            UsageError: the caller of the method gave no way to build such networks.
        """
        if preprocessing == self.preprocessing:
            return self
        if self.network_with is None:
            raise UsageError(
                f"networks behind {preprocessing.kind!r} preprocessing cannot be built here; "
                f"use the track's ({self.preprocessing.kind!r})"
            )
        return dataclasses.replace(
            self, network=self.network_with(preprocessing), preprocessing=preprocessing
        )

    def registered_network(
        self, name: str, options: Mapping[str, Any]
    ) -> Callable[[int], torch.nn.Module]:
        """`build(seed)`: a fresh network of any registered kind, behind the task's preprocessing.

        Args:
            name: its registered name.
            options: of its builder.

        Raises:
            UsageError: there is no such network, or the caller of the method gave no way to build
                one.
        """
        if self.networks is None:
            raise UsageError(f"network {name!r} cannot be built here; the task has only its own")
        return self.networks(name, options, self.preprocessing)

    def pixels(self, index: Tensor | None = None) -> Tensor:
        """Training images as float32 in [0,1], all of them or those at `index`."""
        images = self.images if index is None else self.images[index]
        return images.float().div(255) if images.dtype == torch.uint8 else images

    def class_indices(self) -> list[Tensor]:
        """Indices of each class's training images, in order.

        Raises:
            UsageError: a class has no image.
        """
        found = [torch.nonzero(self.labels == k).flatten() for k in range(self.num_classes)]
        missing = [k for k, index in enumerate(found) if len(index) == 0]
        if missing:
            raise UsageError(f"the training data has no image of class {missing[0]}")
        return found

    def required_ipc(self) -> int:
        """`ipc`, for methods that cannot do without it.

        Raises:
            UsageError: the task names none, or a class has fewer training images.
        """
        if self.ipc is None:
            raise UsageError("this method needs a number of images per class, and got none")
        for k, index in enumerate(self.class_indices()):
            if len(index) < self.ipc:
                raise UsageError(
                    f"ipc {self.ipc} is larger than class {k}, "
                    f"which has {len(index)} training images"
                )
        return self.ipc

    def real_images(self, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`ipc` random training images of each class, without repetition.

        Args:
            ipc: images per class.
            generator: a CPU generator.

        Returns:
            Images (K*ipc,C,H,W) float32 in [0,1], ordered by class, and labels (K*ipc,) int64.

        Raises:
            UsageError: a class has fewer than `ipc` images.
        """
        chosen = []
        for k, index in enumerate(self.class_indices()):
            if len(index) < ipc:
                raise UsageError(
                    f"ipc {ipc} is larger than class {k}, which has {len(index)} training images"
                )
            order = torch.randperm(len(index), generator=generator)[:ipc]
            chosen.append(index[order.to(index.device)])
        where = torch.cat(chosen)
        return self.pixels(where), self.labels[where]


class Distiller(abc.ABC):
    """A distillation method.

    A subclass has a nested frozen dataclass `Config` (its hyper-parameters, each with a default)
    and implements `distill`. Everything random comes from `task.seeds`. Where the defaults are
    slow, a classmethod `quick_config()` may give the `Config` of `robustdd check-plugin`.
    """

    Config: ClassVar[type[Any]]
    PRESETS: ClassVar[Path | None] = None
    """A TOML file of tables `[<preset>.<track or dataset>]` with values for `Config`; optional."""
    PRESET_ALIASES: ClassVar[Mapping[str, str]] = {}
    """Former names of presets, to what they are called now."""
    CITATION: ClassVar[str | Path | None] = None
    """What to cite for it (`robustdd cite`): BibTeX, or the file that holds it; optional."""
    reference: ClassVar[bool] = False
    """True for an end of the scale that is no distilled set, such as the full data: it may hold
    any number of images, and boards show it apart."""
    real_images: ClassVar[bool] = False
    """True for a method whose sets hold training images, or parts of them, as they are."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abc.abstractmethod
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Make the distilled set. State kept in `task.work_dir` makes it resumable."""


@dataclass(frozen=True, slots=True)
class Part:
    """Independent work that comes before a distillation, such as training one expert."""

    name: str
    """Unique within the method, e.g. "expert-3"."""
    output: Path
    """The file that exists, whole, once the part is done."""


class StagedDistiller(Distiller):
    """A method with independent parts before the distillation; an executor may spread them."""

    @abc.abstractmethod
    def parts(self, task: DistillTask) -> Sequence[Part]:
        """The parts, in a fixed order."""

    @abc.abstractmethod
    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        """Do one part: write `part.output` atomically."""

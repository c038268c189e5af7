"""The interface of an attack, and the threat model: all that the author of an attack has to read.

Models are called with pixels in [0,1], shape (B,C,H,W), and return logits (B,K); normalisation is
a layer of the model, so gradients and the eps-ball are in pixel space.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from robustdd_bench.seeds import ExampleGenerator
from robustdd_bench.signatures import both_signatures

Model = Callable[[Tensor], Tensor]
Norm = Literal["Linf", "L2"]


class RoutedModel(abc.ABC):
    """Several students as one model: row b of a batch is answered by the student it belongs to.

    A batch of such a model holds rows (student, example); an attack sees (B,C,H,W) and (B,K) as it
    does with a single model, and attacks all students together.
    """

    @abc.abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B,K) of pixels (B,C,H,W); B is the number of rows the model was made for."""

    @abc.abstractmethod
    def select(self, keep: Tensor) -> RoutedModel:
        """The model for other rows: `keep` (indices, repeated or not, or a mask) of these."""


def rows(model: Model, keep: Tensor) -> Model:
    """The model to call with `images[keep]` where `model` is the one to call with `images`.

    A plain network treats all rows alike and is returned as it is.
    """
    return model.select(keep) if isinstance(model, RoutedModel) else model


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """What an adversary may do: move an image by at most `eps` in `norm`, inside [0,1]."""

    norm: Norm
    eps: float
    """In pixel units: 8/255 is about 0.031."""
    targeted: bool = False
    """If so, the labels given to an attack are the classes to reach, not those to leave."""

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the eps-ball around `images`, then of [0,1]; (B,C,H,W)."""
        return self.shorten(adversarial, images).clamp(0, 1)

    def shorten(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the eps-ball around `images`, inside [0,1] or not; (B,C,H,W)."""
        delta = adversarial - images
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
            delta = delta * (self.eps / length).clamp_max(1.0)[:, None, None, None]
        return images + delta

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The distance of each example in `norm`; (B,)."""
        delta = (adversarial - images).flatten(1)
        return delta.abs().amax(1) if self.norm == "Linf" else delta.norm(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackTask:
    """What an attack gets: a batch of images, and the model to fool with them.

    B examples, C channels, H height, W width, K classes. The tensors are copies, the model is one
    too: another network judges what comes back.
    """

    model: Model
    """Pixels (B,C,H,W) in [0,1] to logits (B,K); in eval mode, its parameters frozen."""
    images: Tensor
    """(B,C,H,W) float in [0,1], on the device of the model."""
    labels: Tensor
    """(B,) int64, the true classes (or the classes to reach, if `threat.targeted`)."""
    threat: ThreatModel
    """Norm and eps."""
    generator: ExampleGenerator
    """The only source of randomness. What it draws for an example does not depend on the batch that
    the example is in."""
    sources: Sequence[Model] = ()
    """Other networks of the same task, pixels to logits, for an attack that has `uses_sources`: the
    other students of the run."""

    def select(self, keep: Tensor) -> AttackTask:
        """The task of some rows (`keep`: indices or a mask); its random streams move on their own.

        An attack that has `routed` leaves rows out so, repeats them or puts them in another order.
        """
        return AttackTask(
            model=rows(self.model, keep),
            images=self.images[keep],
            labels=self.labels[keep],
            threat=self.threat,
            generator=self.generator.select(keep),
            sources=tuple(rows(source, keep) for source in self.sources),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackResult:
    """What an attack found for the images of its task."""

    images: Tensor
    """(B,C,H,W) in [0,1], of the dtype of the task's images and within `threat` of them; for each
    example the best one found, detached."""
    remarks: tuple[str, ...] = ()
    """What the attack has to say about this result, a sentence each. The record keeps the first
    remark of each kind; two remarks that differ in their numbers alone are of one kind."""


class Attack(abc.ABC):
    """An attack on a classifier.

    A subclass has a nested frozen dataclass `Config` and implements `perturb`. Where the defaults
    are slow, a classmethod `quick_config()` may give the `Config` of `robustdd check-plugin`.
    """

    Config: ClassVar[type[Any]]
    CITATION: ClassVar[str | Path | None] = None
    """What to cite for it (`robustdd cite`): BibTeX, or the file that holds it; optional."""
    routed: ClassVar[bool] = False
    """True: `perturb` can attack several students together, which is faster on a GPU. It then calls
    the model with all rows at once, and takes `task.select(keep)` (or `rows(model, keep)`) wherever
    it leaves rows out, repeats them or puts them in another order."""
    white_box: ClassVar[bool] = True
    """Whether it uses the model's gradients; one that does not should not break more."""
    norms: ClassVar[tuple[Norm, ...]] = ("Linf", "L2")
    """The norms it can attack in; `perturb` raises a UsageError for any other."""
    batch_dependent: ClassVar[bool] = False
    """True: what it finds for an example depends on the other examples of the batch, because its
    random numbers are drawn for the batch as a whole. Its result then changes a little with the
    batch size, and holds only together with the batch size that the record names."""
    counted_classes: ClassVar[int | None] = None
    """So many classes cost it as much as any more do, since it aims at so few; None: each costs."""
    stronger_than: ClassVar[tuple[str, ...]] = ()
    """Registered names of attacks that it should break at least as much as, such as those that it
    contains or starts from. Sanity checks hold a suite to that, also over several steps, and run
    the strongest attack again. Name none whose order depends on the student."""
    weaker_than: ClassVar[tuple[str, ...]] = ()
    """The same the other way round."""
    uses_sources: ClassVar[bool] = False
    """True: `task.sources` holds the other students of the run."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        both_signatures(cls, AttackTask, AttackResult)

    @abc.abstractmethod
    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples for the images of the task.

        Raises:
            UsageError: the attack has no version for this norm, for targets or for such images.
        """

    def passes(self, classes: int) -> tuple[int, int] | None:
        """Forward passes and gradients for one image that the attack never breaks.

        Estimates of a run's time count them. Where they are not stated, the attack is tried on a
        tiny network, which takes as many passes.

        Args:
            classes: K.

        Returns:
            None: they are not stated.
        """
        return None

"""What a record says of a distilled set, computed from the set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.identity import identity
from robustdd_bench.protocol.teachers import Teacher
from robustdd_bench.records.parts import SetInfo, TeacherInfo


def set_info(distilled: DistilledSet, num_classes: int) -> SetInfo:
    """The facts of a set that passed `DistilledSet.check`.

    Args:
        distilled: the set.
        num_classes: K.
    """
    labels = distilled.labels.argmax(1) if distilled.soft_labels else distilled.labels
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    return SetInfo(
        sha256=distilled.sha256(),
        images=len(distilled),
        images_per_class=tuple(counts),
        labels="soft" if distilled.soft_labels else "hard",
        learning_rate=distilled.learning_rate,
        augmentation=distilled.augmentation,
        preprocessing=None
        if distilled.preprocessing is None
        else identity(distilled.preprocessing),
        pixel_min=float(distilled.images.min()),
        pixel_max=float(distilled.images.max()),
        teacher=distilled.teacher and _teacher_info(distilled.teacher),
        provenance=dict(distilled.provenance),
        mosaic=distilled.mosaic,
    )


def _teacher_info(teacher: Teacher) -> TeacherInfo:
    return TeacherInfo(
        network=teacher.network,
        options=dict(teacher.options),
        sha256=teacher.sha256(),
        tensors={name: tuple(shape) for name, shape in teacher.shapes().items()},
    )


def plain_set(found: DistilledSet, like: Tensor) -> DistilledSet:
    """The set in our own kinds of objects: those of a stranger may answer what they like.

    Args:
        found: what a method returned.
        like: a tensor of the kind that the run computes with.

    Raises:
        TypeError: images or labels are no plain tensors.
    """

    def plain(what: str, value: Any) -> Tensor:
        if type(value) not in (Tensor, torch.nn.Parameter, type(like)):
            raise TypeError(f"the {what} must be a plain tensor, not {type(value).__name__}")
        detached: Tensor = value.detach()
        return detached

    return DistilledSet(
        images=plain("images", found.images),
        labels=plain("labels", found.labels),
        learning_rate=found.learning_rate,
        augmentation=found.augmentation,
        preprocessing=found.preprocessing,
        teacher=found.teacher and _plain_teacher(found.teacher, plain),
        provenance=dict(found.provenance),
        mosaic=found.mosaic,
    )


def _plain_teacher(found: Teacher, plain: Callable[[str, Any], Tensor]) -> Teacher:
    weights = {str(name): plain(f"teacher's {name}", w) for name, w in found.weights.items()}
    return Teacher(network=str(found.network), options=dict(found.options), weights=weights)

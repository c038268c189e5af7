"""What a record says of a distilled set, computed from the set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.identity import identity
from robustdd_bench.records.parts import SetInfo


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
        provenance=dict(distilled.provenance),
        mosaic=distilled.mosaic,
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
        provenance=dict(found.provenance),
        mosaic=found.mosaic,
    )

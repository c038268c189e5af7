"""What a record says of a distilled set, computed from the set."""

from __future__ import annotations

import torch

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.identity import identity
from robustdd_bench.runs.record_parts import SetInfo


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
    )

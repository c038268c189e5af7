"""Images over iterations: what a method shows of its set while it makes it.

A reporter need not be able to show images, so methods go through `show_images`, which asks it and
does nothing where it cannot. Images are made for a dozen steps of a distillation and for no other,
so that the device waits for the host as often and no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from robustdd_bench.distillers import DistilledSet, Reporter

MOST = 12
"""Snapshots of one distillation."""


@runtime_checkable
class ImageReporter(Protocol):
    """What a reporter that shows images has beside the functions of `Reporter`."""

    def show_images(self, step: int, distilled: DistilledSet) -> None:
        """The set after `step` steps; pixels beyond [0,1] are clipped, for the picture only."""


@functools.lru_cache(maxsize=64)
def snapshot_steps(total: int) -> frozenset[int]:
    """The steps of a distillation at which its images are shown.

    0, the last, and between them steps whose distance grows evenly: images change most in the
    beginning.

    Args:
        total: steps of the whole distillation.
    """
    parts = min(MOST - 1, total)
    if parts < 1:
        return frozenset((0,))
    return frozenset(round(total * (part / parts) ** 2) for part in range(parts + 1))


def show_images(
    reporter: Reporter, step: int, total: int, current: Callable[[], DistilledSet]
) -> None:
    """Show the set after `step` of `total` steps, if that is one of `snapshot_steps`.

    Call it before the checkpoint of that step is saved: a run that goes on from a checkpoint then
    lacks no snapshot.

    Args:
        reporter: the reporter; one that cannot show images is left alone.
        step: finished steps, 0 before the first.
        total: steps of the whole distillation.
        current: makes the set in pixel space; called only if it is shown.
    """
    if step in snapshot_steps(total) and isinstance(reporter, ImageReporter):
        with torch.no_grad():
            reporter.show_images(step, current())

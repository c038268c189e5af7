"""At which steps of a distillation its images are shown: a dozen, the device waits for no more."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

from robustdd_bench.distillers import DistilledSet, Reporter

MOST = 12
"""Snapshots of one distillation."""


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
    """The former name of `Reporter.images`; version 0.3 drops it."""
    text = "show_images(reporter, ...) is now reporter.images(...); version 0.3 drops it"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    reporter.images(step, total, current)

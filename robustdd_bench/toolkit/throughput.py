"""What a method has done, in units that can be compared between methods and machines.

A reporter need not count work, so methods go through `tell_work`. Where nothing is told, the steps
of the outermost progress bar are counted.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from robustdd_bench.distillers import Reporter


@runtime_checkable
class WorkReporter(Protocol):
    """What a reporter that counts work has beside the functions of `Reporter`."""

    def work(self, items: int, unit: str) -> None:
        """So many more items have been worked through."""


def tell_work(reporter: Reporter, items: int, unit: str) -> None:
    """Tell what has been done since it was last told, by this process and not before a kill.

    Args:
        reporter: the reporter; one that does not count is left alone.
        items: e.g. the training images that were passed through a network.
        unit: their plural, e.g. "images"; the same in all parts of a method.
    """
    if isinstance(reporter, WorkReporter):
        reporter.work(items, unit)

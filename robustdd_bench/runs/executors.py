"""Executors: where the cells of a stage run.

The pipeline hands over one stage after the other; the cells of a stage are independent, and
`run_cell(bench, cell, reporter)` is all that running one takes. A distributed executor ships the
plan and the cell's name, builds its own `Workbench` and calls the same function.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from robustdd_bench.runs.cells import Cell

RunCell = Callable[[Cell], None]
"""Runs a cell in this process; raises what the cell raises."""


class Executor(abc.ABC):
    """Runs cells that do not depend on one another."""

    @abc.abstractmethod
    def run(self, cells: Sequence[Cell], run: RunCell) -> None:
        """Return when every cell is done; raise the first failure."""


class LocalExecutor(Executor):
    """One cell after the other, in this process."""

    def run(self, cells: Sequence[Cell], run: RunCell) -> None:
        """Run the cells in order."""
        for cell in cells:
            run(cell)

"""How far the cells of a run have come: waiting for inputs, ready, being computed, done.

A cell waits for those that write what it reads, and for nothing else. Stages are how it is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from robustdd_bench.executors import Cell
from robustdd_bench.runs.progress.reporter import RunReporter


class CellGraph:
    """The cells of one run.

    Args:
        cells: each after those whose files it reads.
        progress: shows the stages.
        times: tells what a cell of a stage and attack takes, in seconds, where that is known; it
            is asked at most once, and only by a display that shows when the run will end.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        progress: RunReporter,
        times: Callable[[], Mapping[tuple[str, str | None], float]] = dict,
    ) -> None:
        self.cells = tuple(cells)
        self._progress, self._times = progress, times
        writers = {cell.output: cell.name for cell in cells}
        self._before = {
            cell.name: {writers[path] for path in cell.inputs if path in writers} for cell in cells
        }
        self._place = {cell.name: place for place, cell in enumerate(cells)}
        self._waiting = list(cells)
        self._ready: list[Cell] = []
        self._done: set[str] = set()
        self._counted: set[str] = set()
        self.computing: dict[str, Cell] = {}
        """Cells that were submitted and have not ended, by name."""
        self.begun: set[str] = set()
        """Cells that were submitted, by name."""
        self._shown: dict[str, tuple[contextlib.ExitStack, Callable[[], None]]] = {}

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return not self.ready() and len(self._done) == len(self.cells)

    def ready(self) -> list[Cell]:
        """The cells that can be computed now, in order."""
        waiting = []
        for cell in self._waiting:
            if not self._before[cell.name] <= self._done:
                waiting.append(cell)
            elif cell.done():
                self._is_done(cell)
            else:
                self._ready.append(cell)
        self._waiting = waiting
        self._ready.sort(key=lambda cell: self._place[cell.name])
        return list(self._ready)

    def left(self) -> dict[str, int]:
        """How many cells of each stage are not done, where there are any."""
        counts = dict.fromkeys((cell.stage for cell in self.cells), 0)
        for cell in self.cells:
            counts[cell.stage] += cell.name not in self._done
        return {stage: count for stage, count in counts.items() if count}

    def begins(self, cell: Cell) -> None:
        """A ready cell is submitted."""
        self._ready.remove(cell)
        self.computing[cell.name] = cell
        self.begun.add(cell.name)
        if cell.stage not in self._shown:
            stage = [other for other in self.cells if other.stage == cell.stage]
            done = {other.name for other in stage if other.name in self._done or other.done()}
            shown = contextlib.ExitStack()
            step = shown.enter_context(self._progress.stage(cell.stage, len(stage), len(done)))
            self._shown[cell.stage] = (shown, step)
            self._counted |= done
        if self._progress.wants_times():
            self._progress.expect(self._seconds())

    def _seconds(self) -> dict[str, float]:
        """What the cells that are not done are expected to take, in seconds."""
        times = self._times()
        return {
            cell.name: max(1, len(cell.students)) * times[cell.stage, cell.attack]
            for cell in self.cells
            if (cell.stage, cell.attack) in times and cell.name not in self._done
        }

    def again(self, cell: Cell) -> None:
        """A cell that was submitted was lost, and is ready as before."""
        del self.computing[cell.name]
        self._ready.append(cell)

    def finished(self, cell: Cell) -> None:
        """A cell that was submitted is done."""
        del self.computing[cell.name]
        self._is_done(cell)

    def failed(self, cell: Cell) -> None:
        """A cell that was submitted has ended and is not done."""
        self.computing.pop(cell.name, None)

    def _is_done(self, cell: Cell) -> None:
        self._done.add(cell.name)
        self._progress.finished(cell.name)
        if cell.stage not in self._shown:
            return
        shown, step = self._shown[cell.stage]
        if cell.name not in self._counted:
            self._counted.add(cell.name)
            step()
        if all(one.name in self._done for one in self.cells if one.stage == cell.stage):
            del self._shown[cell.stage]
            shown.close()

    def close(self, error: BaseException | None) -> None:
        """End the stages that are shown; they failed or were interrupted."""
        while self._shown:
            _, (shown, _) = self._shown.popitem()
            with contextlib.suppress(BaseException):
                shown.__exit__(type(error), error, None) if error else shown.close()

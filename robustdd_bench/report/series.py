"""The values in a `metrics.jsonl`, read as what it is: a file that a kill may have cut off.

A series is one metric of one place of a run, such as the loss of "distill/matching". Long ones are
thinned for a plot: the least and the greatest value of every stretch of steps stay.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustdd_bench.errors import UsageError
from robustdd_bench.files import require_regular
from robustdd_bench.runs.progress.metrics import RESERVED

MAX_SERIES = 400
MAX_STEP = 2**53
MAX_LINE = 64 * 2**10
MOST_POINTS = 400
"""Points of a series in a plot."""


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one place, in the order of the file."""

    stage: str
    """As the file has it, e.g. "experts/expert 3"."""
    name: str
    steps: array[float]
    values: array[float]
    """NaN where the value was not finite."""

    @property
    def head(self) -> str:
        """The stage of the pipeline."""
        return self.stage.partition("/")[0]

    @property
    def place(self) -> str:
        """Where in the stage; empty where the stage has no places."""
        return self.stage.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Metrics:
    """All series of a run, and what is to be said of the file."""

    series: tuple[Series, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reading:
    found: dict[tuple[str, str], Series] = field(default_factory=dict)
    unreadable: int = 0
    left_out: int = 0

    def take(self, line: bytes) -> None:
        try:
            fields: Any = json.loads(line)
            stage, step = fields["stage"], float(fields["step"])
            if not isinstance(stage, str) or not abs(step) <= MAX_STEP:
                raise ValueError
            values = [(k, v) for k, v in fields.items() if k not in RESERVED]
            if not all(v is None or isinstance(v, int | float) for _, v in values):
                raise ValueError
            numbers = [(k, math.nan if v is None else float(v)) for k, v in values]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.unreadable += 1
            return
        for name, value in numbers:
            series = self.found.get((stage, name))
            if series is None:
                if len(self.found) >= MAX_SERIES:
                    self.left_out += 1
                    continue
                series = self.found[stage, name] = Series(stage, name, array("d"), array("d"))
            series.steps.append(step)
            series.values.append(value if math.isfinite(value) else math.nan)


def read_metrics(path: Path) -> Metrics:
    """The series of a file; a missing one has none, and lines that are no metrics are counted."""
    reading = _Reading()
    try:
        require_regular(path)
        with path.open("rb") as file:
            for line in _lines(file):
                if line is None:
                    reading.unreadable += 1
                else:
                    reading.take(line)
    except FileNotFoundError:
        return Metrics()
    except UsageError as error:
        return Metrics((), (str(error),))
    except OSError as error:
        return Metrics((), (f"{path.name} cannot be read: {error.strerror or error}",))
    remarks = []
    if reading.unreadable:
        remarks.append(f"{path.name}: {reading.unreadable} lines are damaged and left out")
    if reading.left_out:
        remarks.append(f"{path.name}: more than {MAX_SERIES} series; the rest is left out")
    return Metrics(tuple(reading.found.values()), tuple(remarks))


def _lines(file: Any) -> Iterator[bytes | None]:
    """The lines; None for one that is too long to be a line of metrics."""
    while line := file.readline(MAX_LINE):
        if line.endswith(b"\n") or len(line) < MAX_LINE:
            yield line
            continue
        yield None
        while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
            pass


def thinned(series: Series, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points (step, value) of a series, in order.

    Of every stretch the first least, the first greatest and the first missing value stay; so do
    both ends of the series.
    """
    steps, values = series.steps, series.values
    count = len(values)
    if count <= most:
        return list(zip(steps, values, strict=True))
    stretches = max(1, most // 3)
    kept = {0, count - 1}
    for part in range(stretches):
        stretch = range(part * count // stretches, (part + 1) * count // stretches)
        there = [i for i in stretch if not math.isnan(values[i])]
        if there:
            kept.add(min(there, key=values.__getitem__))
            kept.add(max(there, key=values.__getitem__))
        if len(there) < len(stretch):
            kept.add(next(i for i in stretch if math.isnan(values[i])))
    return [(steps[i], values[i]) for i in sorted(kept)]

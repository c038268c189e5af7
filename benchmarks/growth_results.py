"""What a committed curve of cost must say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from bench_results import Measured
from pydantic import Field, model_validator

MARGIN = 0.15
"""By how much a slope may lie above the expected one: noise of a few points."""
TAIL = 3
"""Points at the large end, where what does not grow weighs least."""


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


class Growth(Measured):
    """Processor time over one quantity."""

    title: str
    quantity: str
    allocator: dict[str, str]
    threads: Literal[1]
    n: int = Field(ge=3)
    x: list[int] = Field(min_length=4)
    cpu_s: list[list[float]]
    """For each x the n measurements."""
    expected: float
    """The slope that the cost should have, or not exceed."""
    reason: str
    """Why that is expected."""
    slope: float
    """Of log min(cpu_s) over log x, all points."""
    tail_slope: float
    """Of the three largest points."""
    above: bool
    """Whether the tail's slope lies above the expected one by more than .15."""

    @property
    def fastest(self) -> list[float]:
        """The least of the measurements at each x."""
        return [min(values) for values in self.cpu_s]

    @model_validator(mode="after")
    def _consistent(self) -> Growth:
        if len(self.x) != len(self.cpu_s) or any(len(v) != self.n for v in self.cpu_s):
            raise ValueError(f"{self.name} needs {self.n} measurements at every x")
        if self.x != sorted(set(self.x)) or min(self.fastest) <= 0:
            raise ValueError(f"{self.name}: x must rise and times be positive")
        for key, last in (("slope", len(self.x)), ("tail_slope", TAIL)):
            if abs(getattr(self, key) - slope(self.x[-last:], self.fastest[-last:])) > 1e-6:
                raise ValueError(f"{self.name}: {key} does not follow from the measurements")
        if self.above != (self.tail_slope > self.expected + MARGIN):
            raise ValueError(f"{self.name}: `above` does not follow from the slope")
        return self

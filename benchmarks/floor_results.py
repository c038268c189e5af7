"""What a committed result of `floor.py` must say."""

from __future__ import annotations

from typing import Literal

from bench_results import Measured, Strict
from pydantic import Field, model_validator


class Share(Strict):
    """One way of computing a student step."""

    way: Literal["field", "engine", "compiled", "inductor"]
    step_s: float = Field(gt=0)
    """Median processor time of a student step, forward and back."""
    operations: float | None = Field(default=None, gt=0)
    """Of convolutions and matrix products in a step, two for a multiplication with its addition."""
    times_as_fast: float = Field(gt=0)
    """The field's time over this one's."""
    share: float | None = Field(default=None, gt=0)
    """Time that the operations would take at the rate of a matrix product, over `step_s`."""


class Floor(Measured):
    """One case."""

    allocator: dict[str, str]
    n: int = Field(ge=3)
    rate: float = Field(gt=0)
    """Operations a second of a product of two matrices of 2048 x 2048."""
    compile_s: float | None = None
    """Wall time of `torch.compile`, where it was measured; compiled kernels take a few seconds."""
    ways: list[Share]

    @model_validator(mode="after")
    def _consistent(self) -> Floor:
        field = next(way for way in self.ways if way.way == "field")
        for way in self.ways:
            if abs(way.times_as_fast - field.step_s / way.step_s) > 1e-6:
                raise ValueError(f"{way.way}: times_as_fast does not follow from the times")
            expected = None if way.operations is None else way.operations / self.rate / way.step_s
            if (expected is None) != (way.share is None) or (
                expected is not None and abs(expected - (way.share or 0)) > 1e-6
            ):
                raise ValueError(f"{way.way}: share does not follow from operations and rate")
        return self

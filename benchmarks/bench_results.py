"""What a committed result of a benchmark must say."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Nothing unknown, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Machine(Strict):
    """Where it was measured."""

    processor: str = Field(min_length=1)
    cores: int = Field(ge=1)
    platform: str
    load_average: float = Field(ge=0)
    """Of the last minute, before the first measurement: above 1, others were at work."""


def this_machine(load: float) -> Machine:
    """The machine at hand; `load` is the load average before the first measurement."""
    from robustdd_bench.records.environment import environment

    return Machine(
        processor=environment()["processor"],
        cores=os.cpu_count() or 1,
        platform=platform.system() + " " + platform.machine(),
        load_average=round(load, 2),
    )


def this_commit() -> str:
    """The commit of the code that is measured, "-dirty" behind it if it was changed since."""
    from robustdd_bench.registry.commit import source_commit

    commit = source_commit()
    return "" if commit is None else commit["sha"] + ("-dirty" if commit["dirty"] else "")


class Variant(Strict):
    """The measurements of one variant, one process each."""

    name: str
    wall_s: list[float] = Field(min_length=5)
    cpu_s: list[float] = Field(min_length=5)
    """Processor time, which a busy machine troubles less than wall time."""
    peak_bytes: list[int] = Field(min_length=5)
    """Peak resident set above the one before the call."""
    accuracy: list[float] | None = None
    """The robust accuracy that each found, where the workload is an attack."""
    median_wall_s: float
    median_cpu_s: float
    median_peak_bytes: float

    @model_validator(mode="after")
    def _medians(self) -> Variant:
        if self.median_wall_s != statistics.median(self.wall_s):
            raise ValueError(f"{self.name}: median_wall_s is not the median")
        if self.median_cpu_s != statistics.median(self.cpu_s):
            raise ValueError(f"{self.name}: median_cpu_s is not the median")
        if self.median_peak_bytes != statistics.median(self.peak_bytes):
            raise ValueError(f"{self.name}: median_peak_bytes is not the median")
        if min(self.wall_s + self.cpu_s) <= 0 or min(self.peak_bytes) < 0:
            raise ValueError(f"{self.name}: a measurement is negative")
        return self


class Measured(Strict):
    """What every committed result says of itself."""

    schema_version: Literal[1]
    name: str
    workload: str
    command: str
    commit: str
    """Of the harness."""
    n: int
    """Measurements of each variant or point."""
    machine: Machine
    versions: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> list[Self]:
        """The results in a folder, in the order of their names."""
        return [
            cls.model_validate_json(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        ]


class Result(Measured):
    """One benchmark."""

    threads: int = Field(ge=1)
    n: int = Field(ge=5)
    naive: Variant
    ours: Variant
    speedup: float
    """Median wall time of the naive variant over that of ours: above 1, ours is faster."""
    speedup_cpu: float
    """The same of processor time."""
    memory_ratio: float | None
    """Median peak memory of ours over that of the naive variant; None where it is not the point."""

    @model_validator(mode="after")
    def _consistent(self) -> Result:
        for variant in (self.naive, self.ours):
            counts = {len(variant.wall_s), len(variant.cpu_s), len(variant.peak_bytes)}
            if counts != {self.n}:
                raise ValueError(f"{variant.name} was not measured {self.n} times")
        if abs(self.speedup - self.naive.median_wall_s / self.ours.median_wall_s) > 1e-6:
            raise ValueError("speedup does not follow from the medians")
        if abs(self.speedup_cpu - self.naive.median_cpu_s / self.ours.median_cpu_s) > 1e-6:
            raise ValueError("speedup_cpu does not follow from the medians")
        if self.memory_ratio is not None:
            ratio = self.ours.median_peak_bytes / self.naive.median_peak_bytes
            if abs(self.memory_ratio - ratio) > 1e-6:
                raise ValueError("memory_ratio does not follow from the medians")
        return self

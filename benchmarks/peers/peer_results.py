"""What a committed comparison with another codebase must say."""

from __future__ import annotations

from typing import Literal

from bench_results import Measured, Strict, Variant
from pydantic import Field, model_validator

_ROUNDING = 1e-6


class Peer(Strict):
    """The other codebase."""

    name: str = Field(min_length=1)
    url: str = Field(pattern="^https://")
    version: str | None = None
    """Of an installed package."""
    commit: str | None = Field(default=None, pattern="^[0-9a-f]{40}(-changed)?$")
    """Of a fetched repository."""
    driven: str = Field(min_length=1)
    """Which of its functions do the work, and what the driver had to supply."""

    @model_validator(mode="after")
    def _identified(self) -> Peer:
        if (self.version is None) == (self.commit is None):
            raise ValueError(f"{self.name}: give the version of a package or the commit of a fetch")
        return self


class Ours(Variant):
    """One way of ours, and how it compares with the peer."""

    times_as_fast: float
    """Median wall time of the peer over ours: above 1, ours is faster."""
    times_as_fast_cpu: float
    """The same of processor time."""
    memory_ratio: float
    """Median peak memory of ours over that of the peer: below 1, ours needs less."""


class Agreement(Strict):
    """How far a value of ours lies from the peer's."""

    side: str
    """Which way of ours."""
    what: str = Field(min_length=1)
    value: float = Field(ge=0)
    at_most: float | None = None
    """What rounding or seed noise allows; None: the recipes differ here, the value is shown."""
    agrees: bool | None

    @model_validator(mode="after")
    def _judged(self) -> Agreement:
        judged = None if self.at_most is None else self.value <= self.at_most
        if self.agrees is not judged:
            raise ValueError(f"{self.what}: `agrees` does not follow from value and limit")
        return self


class PeerResult(Measured):
    """One comparison."""

    peer: Peer
    allocator: dict[str, str]
    """Variables of glibc's allocator, the same for all sides; empty: its defaults."""
    threads: Literal[1]
    n: int = Field(ge=5)
    theirs: Variant
    ours: list[Ours] = Field(min_length=1)
    agreement: list[Agreement] = Field(min_length=1)
    facts: dict[str, float]
    """What helps to read the ratios, such as the robust accuracy of both sides."""

    @model_validator(mode="after")
    def _consistent(self) -> PeerResult:
        names = [side.name for side in self.ours]
        if len(set(names)) < len(names) or {a.side for a in self.agreement} != set(names):
            raise ValueError("every way of ours needs its own measurements and agreement")
        for side in (self.theirs, *self.ours):
            if {len(side.wall_s), len(side.cpu_s), len(side.peak_bytes)} != {self.n}:
                raise ValueError(f"{side.name} was not measured {self.n} times")
        for side in self.ours:
            expected = ratios(self.theirs, side)
            for key, value in expected.items():
                if abs(getattr(side, key) - value) > _ROUNDING * max(1.0, value):
                    raise ValueError(f"{side.name}: {key} does not follow from the medians")
        return self


def ratios(theirs: Variant, ours: Variant) -> dict[str, float]:
    """The three ratios of `Ours`, from medians."""
    return {
        "times_as_fast": theirs.median_wall_s / ours.median_wall_s,
        "times_as_fast_cpu": theirs.median_cpu_s / ours.median_cpu_s,
        "memory_ratio": ours.median_peak_bytes / max(theirs.median_peak_bytes, 1.0),
    }

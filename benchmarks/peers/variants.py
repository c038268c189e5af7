"""The harness's ways of computing that are measured beside a peer: add one here, and nowhere else.

The peer always runs as its authors wrote it. Each way of ours is a line of `OURS`; all sides of a
comparison take turns in one run, so that their ratios are of one machine at one time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PEER = "peer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How the harness computes in one variant; the default is the eager way."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the child process, beside those that every side gets."""
    switch: Callable[[], None] | None = None
    """Called first thing in the child process, before networks are built."""
    compile: bool = False
    """Whether compiled kernels compute (`robustdd_bench.toolkit.fast.blocks`)."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `AdjointEngine`."""
    rehearse: bool = False
    """Call the work once, unmeasured, before it is measured: for code compiled on first use."""


OURS: Mapping[str, Way] = {
    "ours": Way(),
    "ours-compiled": Way(compile=True),
}
"""By name."""


def way(side: str) -> Way:
    """How a side computes; for the peer, the default."""
    return OURS.get(side, Way())

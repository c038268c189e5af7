"""Whether a measured ratio has fallen behind the committed one.

Only ratios of two variants measured in one run are compared, never times: another machine, or a
busy one, changes both variants alike. Processor time, and of each variant the fastest process,
which other processes trouble least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench_results import Result

FELL = 0.2
"""A ratio that is worse than the committed one by more than this share has fallen."""

Measured = Mapping[str, float]
"""What `measure._once` gives: wall_s, cpu_s, peak_bytes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measured ratio beside the committed one."""

    what: str
    """"speed": how many times as fast as the naive variant ours is; "memory": its share of it."""
    measured: float
    committed: float
    fell: bool

    def __str__(self) -> str:
        if self.what == "speed":
            text = f"{self.measured:.2f} times as fast (committed {self.committed:.2f})"
        else:
            text = f"{self.measured:.3f} of the memory (committed {self.committed:.3f})"
        return text + (" FELL" if self.fell else " ok")


def judge(
    naive: Sequence[Measured], ours: Sequence[Measured], committed: Result
) -> tuple[Verdict, ...]:
    """Hold the ratios of some measurements against a committed result.

    Args:
        naive: measurements of the naive variant.
        ours: of ours, taken in turns with it.
        committed: the result that is in the repository.

    Returns:
        A verdict on speed, and one on memory where the committed result has a memory ratio.
    """
    speed = min(m["cpu_s"] for m in naive) / min(m["cpu_s"] for m in ours)
    verdicts = [
        Verdict("speed", speed, committed.speedup_cpu, speed < committed.speedup_cpu * (1 - FELL))
    ]
    if committed.memory_ratio is not None:
        share = min(m["peak_bytes"] for m in ours) / min(m["peak_bytes"] for m in naive)
        # Less is better: a fifth less memory saved is 1 / (1 - .2) times the share.
        fell = share > committed.memory_ratio / (1 - FELL)
        verdicts.append(Verdict("memory", share, committed.memory_ratio, fell))
    return tuple(verdicts)


def line(name: str, verdicts: Sequence[Verdict]) -> str:
    """One line on one benchmark."""
    return f"{name}: " + "; ".join(map(str, verdicts))

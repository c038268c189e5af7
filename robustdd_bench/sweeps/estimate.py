"""What runs will cost, from what records say that like ones did, or from their operations.

An estimate is the mean over the complete records of the same method and settings on the same track
and kind of device; where there are none with these settings, over those with others. Nothing is
guessed from other methods or tracks: without a record, operations are counted from the plan, and
divided by the rate at which this machine trains the track's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.evaluation.statistics.means import mean
from robustdd_bench.executors import RECEIPT, read_receipt
from robustdd_bench.plugins import Registry
from robustdd_bench.records.environment import environment
from robustdd_bench.records.plan import Plan
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.runs.operations import operations, rate

DIFFERENCES = ("settings", "machine", "threads", "split")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that a run is expected to take."""

    wall_s: float
    """On one machine, cell after cell; experts that it will find in the store are counted too."""
    records: int
    """How many records it is the mean of; 0: it is from operations."""
    differs: tuple[str, ...]
    """In what those runs differ from the planned one, of `DIFFERENCES`; the cost of another split
    is scaled by the number of images."""
    operations: float | None = None
    """Floating-point operations of the run, where it is from them."""

    def __str__(self) -> str:
        """Where it is from, e.g. "3 runs, other settings, split"."""
        if self.operations is not None:
            return f"{self.operations:.1e} operations"
        runs = "1 run" if self.records == 1 else f"{self.records} runs"
        return f"{runs}, other {', '.join(self.differs)}" if self.differs else runs


@dataclass(slots=True)
class History:
    """The records below some folders that hold `<track>/<method>/<run id>/record.json`.

    Args:
        folders: output folders, or the `results` of a board.
    """

    folders: Sequence[Path]
    machine: dict[str, Any] = field(default_factory=environment)
    """The facts of the machine that is planned for."""
    _read: dict[tuple[str, str], list[Record]] = field(default_factory=dict)

    def records(self, plan: Plan) -> list[Record]:
        """The complete records of a plan's method, track and kind of device.

        What is no valid record is passed over.
        """
        key = (plan.track.name, plan.method)
        if key not in self._read:
            self._read[key] = [*self._of(*key)]
        track = plan.track.sha256()
        return [
            record
            for record in self._read[key]
            if record.track_sha256 == track and record.device == plan.device
        ]

    def _of(self, track: str, method: str) -> list[Record]:
        found: dict[str, Record] = {}
        for folder in self.folders:
            for path in sorted((folder / track / method).glob("*/record.json")):
                try:
                    record = read_record(path)
                except UsageError:
                    continue
                if record.status == "complete" and record.method.name == method:
                    found.setdefault(record.run_id, record)
        return [*found.values()]


def estimate(
    plan: Plan, history: History, out: Path, registry: Registry | None = None
) -> Estimate | None:
    """What is left of a run, in seconds; None if nothing tells.

    Args:
        plan: the run.
        history: where to look for like ones.
        out: the output folder, in which the run may have been begun.
        registry: the installed plugins, to count operations where no record tells; None: they are
            not counted.
    """
    spent = _spent(plan.folder(out))
    candidates = []
    for record in history.records(plan):
        wall_s = _seconds(record, plan)
        if wall_s is not None:
            candidates.append((_differences(record, plan, history.machine), wall_s))
    if not candidates:
        return None if registry is None else _counted(plan, registry, spent)
    nearest = min(differences for differences, _ in candidates)
    found = [wall_s for differences, wall_s in candidates if differences == nearest]
    differs = tuple(what for what, other in zip(DIFFERENCES, nearest, strict=True) if other)
    return Estimate(max(0.0, mean(found) - spent), len(found), differs)


def _counted(plan: Plan, registry: Registry, spent: float) -> Estimate | None:
    """An estimate from operations; None where they cannot be told."""
    try:
        count = sum(operations(plan, registry).values())
        wall_s = count / rate(plan, registry)
    except RobustDDError:
        return None
    return Estimate(max(0.0, wall_s - spent), 0, (), count)


def _differences(record: Record, plan: Plan, machine: dict[str, Any]) -> tuple[bool, ...]:
    """In what a record's run differs from a plan, in the order of `DIFFERENCES`."""
    return (
        record.method.config != plan.config,
        _processor(record.costs.environment, plan.device) != _processor(machine, plan.device),
        record.threads != plan.threads,
        record.split != plan.split,
    )


def _processor(facts: dict[str, Any], device: str) -> object:
    """What computes, of the facts that a record has of its environment."""
    return facts.get("accelerators" if device == "cuda" else "processor")


def _seconds(record: Record, plan: Plan) -> float | None:
    """What a record's run took, had it had the split of a plan; None if that cannot be told."""
    factors: dict[str, float] = {}
    if record.split != plan.split:
        if record.split == "validation" or record.data is None:
            return None  # it does not know how large the test split is
        held = plan.track.data.validation_fraction
        images = record.data.train_examples * held / record.data.evaluation_examples
        factors = {"experts": 1 - held, "attacks": images, "sanity": images}
    return sum(stage.wall_s * factors.get(stage.stage, 1.0) for stage in record.costs.stages)


def _spent(folder: Path) -> float:
    """Seconds that the finished cells of a run took which has begun."""
    receipts = (read_receipt(path) for path in folder.rglob(f"*{RECEIPT}"))
    return sum(receipt.wall_s for receipt in receipts if receipt is not None)

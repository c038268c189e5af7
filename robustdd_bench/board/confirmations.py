"""Confirmations: runs that were made again, kept beside the run that they confirm.

Two runs of one identity (method and settings, track and suite, seed, split) measure the same thing.
They may differ in torch, in versions, in device, threads and machine. The first one is the run; the
others confirm it, or fail to. They are no further seeds and no rows: a repeated seed says how far
the figures hold, not how far other sets would differ.

A confirmation is a folder below its run, `confirmations/<name>/`, with record, set and preview as a
run has them. Its name is the beginning of the hash of its record, since runs of one plan on two
machines have one run id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.record import Record

CONFIRMATIONS = "confirmations"


def first_of_each(records: Iterable[Record]) -> list[Record]:
    """Of the records of each identity the one that was started first; in the order given."""
    given = list(records)
    first: dict[str, Record] = {}
    for record in sorted(given, key=precedence):
        first.setdefault(record.plan().identity(), record)
    chosen = {id(record) for record in first.values()}
    return [record for record in given if id(record) in chosen]


def precedence(record: Record) -> tuple[float, str]:
    """What orders the runs of one identity: when they were started, then the id."""
    return record.costs.started.timestamp(), record.run_id


def folder_name(record_file: Path) -> str:
    """The name of a confirmation's folder: 12 hex digits of the hash of its record.

    Raises:
        OSError: the record cannot be read.
    """
    return hashlib.sha256(record_file.read_bytes()).hexdigest()[:12]


def run_of(folder: Path) -> Path | None:
    """The folder of the run that the confirmation in this folder is below; None if it is none."""
    return folder.parents[1] if folder.parent.name == CONFIRMATIONS else None


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a confirmation is from its run where it is furthest."""

    eps: float
    """0: clean accuracy."""
    difference: float
    """Accuracy of the confirmation minus that of the run, in [0,1]."""

    def __str__(self) -> str:
        """E.g. "largest difference +1.2 points at 0.10"."""
        if self.difference == 0:
            return "no accuracy differs"
        where = f"at {eps_label(self.eps)}" if self.eps else "in clean accuracy"
        return f"largest difference {100 * self.difference:+.1f} points {where}"


def deviation(run: Record, again: Record) -> Deviation:
    """The largest difference of an accuracy, over clean and every eps; of several the first."""
    assert run.aggregates is not None
    assert again.aggregates is not None
    levels = [Deviation(0.0, again.aggregates.clean.mean - run.aggregates.clean.mean)]
    levels += [
        Deviation(one.eps, other.accuracy.mean - one.accuracy.mean)
        for one, other in zip(run.aggregates.robust, again.aggregates.robust, strict=True)
    ]
    return max(levels, key=lambda level: abs(level.difference))

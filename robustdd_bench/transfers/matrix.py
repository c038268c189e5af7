"""A transfer matrix: examples made on the students of each run, judged on those of every run.

Row i, column j: an attack with full knowledge of a student of run i makes an example of every image
(also of those that the student gets wrong), and a student of run j is right on it. As everywhere
here an example counts as broken only if it is finite, in [0,1], within eps and misclassified in a
fresh forward pass, and as robust only if the student was right on the image itself: accuracy under
transferred examples is never above the clean one. On the diagonal each student is judged on its own
examples, which is the white-box case; its siblings' are told apart from that.

This is not the attack `transfer`, which is part of a run's suite: there the sources are the other
students of the same run, and the worst of them counts for each image.

Each pair of runs is kept in a file of the output folder under a hash of everything that it depends
on, and read from there by the next call.

Shapes: A students of the source, B of the target, N examples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustdd_bench import __version__
from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.config import config_to_dict
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.prediction import classified, other_batch_size
from robustdd_bench.evaluation.robustness import check_examples, move_examples
from robustdd_bench.evaluation.statistics.means import Aggregate, aggregate, mean
from robustdd_bench.filenames import PAIRS_FOLDER
from robustdd_bench.files import read_json, write_json
from robustdd_bench.plugins import Entry
from robustdd_bench.records.means import torch_version
from robustdd_bench.runs.work import threads
from robustdd_bench.transfers.sources import TransferRun

Sources = Literal["all", "first"]
Shares = tuple[tuple[float, ...], ...]
"""Accuracy (A,B): of target student b on the examples of source student a."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferCell:
    """Examples of one run, judged on another one."""

    source: str
    """Label of the run whose students the examples were made on."""
    target: str
    """Label of the run whose students are judged."""
    accuracy: Aggregate
    """Over the students judged; each is the mean over those that the examples were made on. On the
    diagonal each is judged on its own examples."""
    shares: Shares
    """Accuracy of each student judged (inner) on the examples of each source (outer)."""
    siblings: float | None
    """On the diagonal, where there are several students: mean accuracy on examples of others."""
    reused: bool
    """Whether it was read from an earlier call's file."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TransferMatrix:
    """Rows are sources, columns are targets; both are the runs in their order."""

    runs: tuple[TransferRun, ...]
    attack: str
    config: dict[str, Any]
    norm: str
    eps: float
    examples: int
    """How many images, from the start of the split."""
    sources: Sources
    clean: tuple[Aggregate, ...]
    """Of each run, without an attack, on the same images."""
    cells: tuple[tuple[TransferCell, ...], ...]
    remarks: tuple[str, ...] = ()
    """What the attack says of its examples."""

    @property
    def labels(self) -> list[str]:
        """What the runs are called."""
        return [run.label for run in self.runs]

    @property
    def accuracy(self) -> list[list[float]]:
        """Mean accuracies in [0,1], row by row."""
        return [[cell.accuracy.mean for cell in row] for row in self.cells]

    @property
    def reused(self) -> int:
        """How many pairs were read from files."""
        return sum(cell.reused for row in self.cells for cell in row)

    def __repr__(self) -> str:
        return f"TransferMatrix({self.attack} on {', '.join(self.labels)}, eps {self.eps:g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""

        def told(one: Aggregate) -> dict[str, Any]:
            return {
                "mean": one.mean,
                "std": one.std,
                "low": one.low,
                "high": one.high,
                "values": list(one.values),
            }

        return {
            "attack": self.attack,
            "config": self.config,
            "norm": self.norm,
            "eps": self.eps,
            "examples": self.examples,
            "sources": self.sources,
            "runs": [
                {
                    "label": run.label,
                    "folder": str(run.path),
                    "run_id": run.record.run_id,
                    "method": run.record.method.name,
                    "seed": run.record.seed,
                    "track": run.record.track.id,
                    "split": run.record.split,
                    "students": len(run.record.students),
                    "clean": told(clean),
                }
                for run, clean in zip(self.runs, self.clean, strict=True)
            ],
            "cells": [
                {
                    "source": cell.source,
                    "target": cell.target,
                    **told(cell.accuracy),
                    "siblings": cell.siblings,
                    "shares": [list(row) for row in cell.shares],
                }
                for row in self.cells
                for cell in row
            ],
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True, slots=True)
class _Protocol:
    """What all pairs have in common."""

    entry: Entry
    attack: Attack
    version: str
    threat: ThreatModel
    examples: int
    sources: Sources

    def made_on(self, run: TransferRun) -> range:
        """The students of a source that examples are made on."""
        return range(1 if self.sources == "first" else len(run.record.students))

    def seeds(self, run: TransferRun) -> list[int]:
        """The noise of the attack on each of them: that of the run's own suite."""
        shared = run.context.seeds.shared()
        return [shared.seed("attack", self.entry.name, r) for r in self.made_on(run)]

    def inputs(self, source: TransferRun, target: TransferRun) -> dict[str, Any]:
        """Everything that the figures of a pair depend on, as JSON values."""
        context = source.context
        return {
            "attack": self.entry.name,
            "plugin": self.entry.plugin,
            "version": self.version,
            "config": config_to_dict(self.attack.config),
            "norm": self.threat.norm,
            "eps": self.threat.eps,
            "examples": self.examples,
            "data": source.data.evaluation_sha256,
            "source": [source.weights[r] for r in self.made_on(source)],
            "seeds": self.seeds(source),
            "target": target.weights,
            "batch_size": source.record.track.threat.batch_size,
            "device": context.device.type,
            "threads": context.plan.threads,
            "compile": context.compile,
            "torch": torch_version(),
            "harness": __version__,
        }


def transfer_matrix(
    runs: Sequence[TransferRun],
    entry: Entry,
    attack: Attack,
    *,
    eps: float,
    version: str,
    examples: int | None = None,
    sources: Sources = "all",
    out: Path | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> TransferMatrix:
    """Make and judge every pair of runs.

    Args:
        runs: what `load_runs` gave.
        entry: the attack as it is registered.
        attack: the attack, configured.
        eps: in the norm of the runs.
        version: of the distribution that the attack comes from.
        examples: only so many images from the start of the split; None: all.
        sources: whether examples are made on all students of a run, or on its first one.
        out: folder in which pairs are kept; None: nothing is.
        note: told, in one line, what is being computed.

    Raises:
        UsageError: `examples` is out of range.
        RunFailedError, PluginError: a file cannot be written, or the attack failed.
    """
    split = runs[0].context.evaluation
    size = len(split)
    if examples is not None and not 1 <= examples <= size:
        raise UsageError(f"examples must lie in 1..{size}, not {examples}")
    count = size if examples is None else examples
    threat = ThreatModel(runs[0].record.track.threat.norm, eps)
    protocol = _Protocol(entry, attack, version, threat, count, sources)
    images, labels = split.pixels()[:count], split.labels[:count]
    remarks: dict[str, None] = {}
    with threads(runs[0].context.plan.threads):
        right = [_right(run, images, labels) for run in runs]
        cells = []
        for number, source in enumerate(runs, 1):
            known = [_read(out, protocol.inputs(source, target)) for target in runs]
            if any(one is None for one in known):
                note(f"{entry.name} on the students of {source.label} ({number} of {len(runs)})")
                made, said = _pairs(protocol, source, runs, known, right, images, labels, note)
                remarks |= dict.fromkeys(said)
                for target, shares, before in zip(runs, made, known, strict=True):
                    if before is None:
                        _write(out, protocol.inputs(source, target), shares)
            else:
                made = [shares for shares in known if shares is not None]
            cells.append(
                tuple(
                    _cell(source, target, shares, count, before is not None)
                    for target, shares, before in zip(runs, made, known, strict=True)
                )
            )
    return TransferMatrix(
        runs=tuple(runs),
        attack=entry.name,
        config=config_to_dict(attack.config),
        norm=threat.norm,
        eps=eps,
        examples=count,
        sources=sources,
        clean=tuple(aggregate(bits.double().mean(1).tolist(), count) for bits in right),
        cells=tuple(cells),
        remarks=tuple(remarks),
    )


def _right(run: TransferRun, images: Tensor, labels: Tensor) -> Tensor:
    """Bits (B,N) on the CPU: what the students of a run get right."""
    batch = run.record.track.threat.batch_size
    with run.context.network_code():
        return torch.stack([classified(one, images, labels, batch) for one in run.students])


def _pairs(
    protocol: _Protocol,
    source: TransferRun,
    runs: Sequence[TransferRun],
    known: Sequence[Shares | None],
    right: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    note: Callable[[str], object],
) -> tuple[list[Shares], tuple[str, ...]]:
    """The shares of a source with every target, those that are known as they are."""
    batch = source.record.track.threat.batch_size
    verify = other_batch_size(len(images), batch)
    rows: list[list[tuple[float, ...]]] = [[] for _ in runs]
    seeds, remarks = protocol.seeds(source), dict[str, None]()
    for group in _groups(protocol, source):
        models: list[nn.Module] = [source.students[r] for r in group]
        with source.context.network_code():
            moved = move_examples(
                models,
                images,
                labels,
                protocol.attack,
                protocol.threat,
                [seeds[r] for r in group],
                batch,
                [torch.arange(len(images), device=images.device)] * len(group),
                name=protocol.entry.name,
                plugin=protocol.entry.plugin,
                compile=source.context.compile,
                note=note,
            )
        remarks |= dict.fromkeys(moved.remarks)
        for found in moved.examples:
            for place, target in enumerate(runs):
                if known[place] is not None:
                    continue
                shares = []
                with target.context.network_code():
                    for student, before in zip(target.students, right[place], strict=True):
                        broken, _ = check_examples(
                            student, images, found, labels, protocol.threat, verify
                        )
                        shares.append(float((before & ~broken.cpu()).double().mean()))
                rows[place].append(tuple(shares))
    made = [tuple(rows[place]) if before is None else before for place, before in enumerate(known)]
    return made, tuple(remarks)


def _groups(protocol: _Protocol, source: TransferRun) -> list[tuple[int, ...]]:
    """The students of a source that are attacked together: all on a GPU, else one by one."""
    students = tuple(protocol.made_on(source))
    if protocol.attack.routed and source.context.device.type == "cuda":
        return [students]
    return [(r,) for r in students]


def _cell(
    source: TransferRun, target: TransferRun, shares: Shares, examples: int, reused: bool
) -> TransferCell:
    siblings = None
    if source is target:
        values = [row[a] for a, row in enumerate(shares)]
        others = [share for a, row in enumerate(shares) for b, share in enumerate(row) if a != b]
        siblings = mean(others) if others else None
    else:
        values = [mean(column) for column in zip(*shares, strict=True)]
    return TransferCell(
        source=source.label,
        target=target.label,
        accuracy=aggregate(values, examples),
        shares=shares,
        siblings=siblings,
        reused=reused,
    )


def _pair_path(out: Path, inputs: dict[str, Any]) -> Path:
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return out / PAIRS_FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _read(out: Path | None, inputs: dict[str, Any]) -> Shares | None:
    """The shares that an earlier call kept for these inputs; None where there are none."""
    if out is None:
        return None
    try:
        kept = read_json(_pair_path(out, inputs))
        if kept["inputs"] != inputs:
            return None
        shares = tuple(tuple(map(float, row)) for row in kept["shares"])
    except (UsageError, KeyError, TypeError, ValueError):
        return None
    whole = len(shares) == len(inputs["source"]) and all(
        len(row) == len(inputs["target"]) and all(0 <= share <= 1 for share in row)
        for row in shares
    )
    return shares if whole else None


def _write(out: Path | None, inputs: dict[str, Any], shares: Shares) -> None:
    if out is not None:
        write_json(_pair_path(out, inputs), {"inputs": inputs, "shares": shares})

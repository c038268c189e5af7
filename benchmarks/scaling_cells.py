"""The cells of the CIFAR board with the seconds that each takes, for `benchmarks/scaling.py`.

Cells come from the planning code, on a machine that has neither the GPU nor the data; seconds from
counted operations, at rates that were measured on an H200.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from robustdd_bench.errors import PluginWarning
from robustdd_bench.evaluation.students import total_steps
from robustdd_bench.executors import Cell
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.datasets import ImageData, Split
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.records.plan import Plan
from robustdd_bench.runs.cells import all_cells
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.operations import (
    RIGHT,
    SIZES,
    STANDING,
    RunFacts,
    passes,
    run_facts,
    student_operations,
)
from robustdd_bench.sweeps.plan import plan_sweep

HERE = Path(__file__).resolve().parent
PLANNED = HERE / "results" / "scaling" / "board.json"
BOARDS = ("board-cifar10.toml", "board.toml", "board-cifar100.toml")
RECORD = "leaderboard/results/cifar10-ipc5/mat/8261604d7923/record.json"
COUNTED = {"experts": 4_385_600_307_200_000.0, "distill": 1_784_365_056_000_000.0}
"""Operations of that record's stages, as `robustdd_bench.runs.operations` counts them."""


@dataclass(frozen=True)
class Rates:
    """What was measured on an H200, torch 2.11, compiled kernels; see `measured`."""

    training: float
    """Operations a second of training steps on 256 images: the record's experts."""
    matching: float
    """Operations a second of the matching: the record's distillation, 50 images."""
    step_s: float
    """Least seconds of a student's step: the record's students, 50 images a step."""
    forward_s: float
    """Seconds of a forward pass of an attack with its gradient, an image: PGD-20."""
    autoattack_s: float
    """The same of AutoAttack: what is left of the record's attacks."""
    sanity_s: float
    """Seconds of the sanity checks of a student."""


@dataclass
class Job:
    """A cell on paper."""

    run: int
    place: int
    stage: str
    seconds: float
    before: list[int] = field(default_factory=list)
    """Cells that it waits for."""
    chain_s: float = 0.0
    """Its own seconds, and those of the longest chain of cells that wait for it."""


def measured() -> Rates:
    """The rates, from the record of MAT and the committed measurements."""
    record = json.loads((HERE.parent / RECORD).read_text(encoding="utf-8"))
    wall_s = {stage["stage"]: stage["wall_s"] for stage in record["costs"]["stages"]}
    forwards: dict[str, int] = defaultdict(int)
    for student in record["students"]:
        for outcome in student["attacks"]:
            forwards[outcome["attack"]] += outcome["forwards"]
    bench = json.loads((HERE / "results/gpu/students.json").read_text(encoding="utf-8"))
    pgd = next(m for m in bench["measurements"] if m["variant"] == "together, looped")
    forward_s = 1 / (pgd["items_per_s"] * 21)  # 20 steps, and the images it ends in
    rest_s = wall_s["attacks"] - forward_s * sum(
        count for name, count in forwards.items() if name != "autoattack"
    )
    steps = sum(student["steps"] for student in record["students"])
    return Rates(
        training=COUNTED["experts"] / wall_s["experts"],
        matching=COUNTED["distill"] / wall_s["distill"],
        step_s=wall_s["students"] / steps,
        forward_s=forward_s,
        autoattack_s=rest_s / forwards["autoattack"],
        sanity_s=wall_s["sanity"] / len(record["students"]),
    )


class PaperContext(RunContext):
    """The context of a run on a GPU, on a machine that has neither the GPU nor the data."""

    @cached_property
    def _data(self) -> ImageData:
        """As many images of each class as a set has, all black."""
        shape, classes, *_ = SIZES[self.plan.track.data.dataset]
        labels = torch.arange(classes).repeat_interleave(max(1, self.plan.track.data.ipc))
        split = Split(torch.zeros(len(labels), *shape, dtype=torch.uint8), labels)
        return ImageData(split, split, classes)

    @cached_property
    def data_hashes(self) -> tuple[str, str]:
        """Names in place of hashes."""
        return self.plan.track.data.dataset, f"{self.plan.track.data.dataset} test"


@contextlib.contextmanager
def unwhitened() -> Iterator[None]:
    """No preprocessing layer is fitted: cells do not depend on it."""
    with mock.patch.object(Preprocessing, "layer", return_value=nn.Identity()):
        yield


def registry() -> Registry:
    """What is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return collect(get_plugin_manager())


def plans(found: Registry) -> list[Plan]:
    """The runs of the boards with seed 0, as one sweep after the other has them."""
    made: list[Plan] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in BOARDS:
            text = (HERE / "gpu" / name).read_text(encoding="utf-8")
            text = text.replace('"herding", "full"', '"herding", "k-centre", "full"')
            path = Path(folder, name)
            path.write_text(text, encoding="utf-8")
            made += [
                run.plan for run in plan_sweep(path, found, device="cuda", elsewhere=True).runs
            ]
    return made


def cells_on_paper(found: Registry, runs: Sequence[Plan], rates: Rates) -> list[Job]:
    """Every cell of the runs with its seconds; one that runs share is there once."""
    jobs: list[Job] = []
    writers: dict[Path, int] = {}
    with tempfile.TemporaryDirectory() as folder, unwhitened():
        for number, plan in enumerate(runs):
            context = PaperContext(plan, found, Path(folder), Path(folder))
            facts = _facts(found, plan)
            for place, cell in enumerate(all_cells(context)):
                if cell.output in writers:
                    continue
                before = [writers[path] for path in cell.inputs]
                seconds = seconds_of(cell, facts, found, rates)
                writers[cell.output] = len(jobs)
                jobs.append(Job(number, place, cell.stage, seconds, before))
    return jobs


def chained(jobs: list[Job]) -> list[Job]:
    """The cells with the chains behind them."""
    after: dict[int, float] = defaultdict(float)
    for index in reversed(range(len(jobs))):
        jobs[index].chain_s = jobs[index].seconds + after[index]
        for earlier in jobs[index].before:
            after[earlier] = max(after[earlier], jobs[index].chain_s)
    return jobs


_KNOWN: dict[str, RunFacts] = {}


def _facts(found: Registry, plan: Plan) -> RunFacts:
    key = json.dumps(replace(plan, seed=0).to_dict(), sort_keys=True, default=str)
    if key not in _KNOWN:
        _KNOWN[key] = run_facts(plan, found)
    return _KNOWN[key]


def seconds_of(cell: Cell, it: RunFacts, found: Registry, rates: Rates) -> float:
    """What a cell is expected to take.

    Args:
        cell: which.
        it: what is counted of its run.
        found: what is installed.
        rates: what was measured.
    """
    track = it.plan.track
    if cell.stage == "experts":
        return it.making.experts / it.experts / rates.training
    if cell.stage == "distill":
        # Matching, and methods whose steps have as few images; coresets pass over the data.
        small = it.experts or it.plan.method in ("dc", "dsa", "dm")
        return it.making.distill / (rates.matching if small else rates.training)
    if cell.stage == "students":
        work_s = student_operations(it) / rates.training
        return max(work_s, total_steps(track.students, it.images) * rates.step_s)
    if cell.stage == "sanity":
        return rates.sanity_s
    assert cell.attack is not None
    return (
        len(cell.students)
        * _forwards(it, cell.attack, found)
        * (rates.autoattack_s if cell.attack == "autoattack" else rates.forward_s)
    )


def _forwards(it: RunFacts, attack: str, found: Registry) -> float:
    """Forward passes of an attack on one student, at the shares that estimates take."""
    track = it.plan.track
    spec = next(one for one in track.attacks if one.name == attack)
    config = next(dict(one.config) for one in it.plan.attacks if one.name == attack)
    classes = SIZES[track.data.dataset][1]
    kind = found.get("attacks", attack).load()
    each, _ = passes(kind, json.dumps(config), it.shape[0], classes, track.threat.norm)
    share = RIGHT if spec.on == "all" else min(RIGHT, STANDING)
    return len(track.levels(spec)) * share * it.test * (each + 1)


def planned() -> tuple[list[Job], list[str]]:
    """The cells with one seed, from the planning code."""
    found = registry()
    runs = plans(found)
    jobs = cells_on_paper(found, runs, measured())
    return jobs, [f"{plan.method} on {plan.track.name}" for plan in runs]


def save(jobs: Sequence[Job], names: Sequence[str]) -> None:
    """Write what was planned."""
    cells = [[job.run, job.place, job.stage, round(job.seconds, 4), job.before] for job in jobs]
    PLANNED.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    text = f'{{"schema_version": 1, "runs": {json.dumps(list(names))}, "cells": [\n{lines}\n]}}\n'
    PLANNED.write_text(text, encoding="utf-8")


def load() -> tuple[list[Job], list[str]]:
    """What was planned."""
    read = json.loads(PLANNED.read_text(encoding="utf-8"))
    return [Job(*cell) for cell in read["cells"]], read["runs"]

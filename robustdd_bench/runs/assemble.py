"""The record of a run, put together from the files of its cells."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.errors import RobustDDError
from robustdd_bench.evaluation.outcomes import pack_bits, unpack_bits
from robustdd_bench.evaluation.overlap import overlap
from robustdd_bench.evaluation.robustness import AttackOutcome
from robustdd_bench.evaluation.witnesses import load, merge, save
from robustdd_bench.executors import STAGES, Cell
from robustdd_bench.filenames import WITNESSES_FILE
from robustdd_bench.files import read_json
from robustdd_bench.records.environment import environment, process
from robustdd_bench.records.parts import (
    AttackBits,
    AttackInfo,
    Costs,
    DataInfo,
    Failure,
    Flag,
    MethodInfo,
    OverlapInfo,
    StageProcess,
    StageTime,
    StudentResult,
)
from robustdd_bench.records.record import SCHEMA_VERSION, Record, aggregate_students, make_record
from robustdd_bench.records.set_info import set_info
from robustdd_bench.runs.cells import reused
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.reuse import ReusedSet, read_reused
from robustdd_bench.runs.work import read_outcomes

MAX_REASON = 2000


def assemble(context: RunContext, cells: Sequence[Cell], started: datetime.datetime) -> Record:
    """The record of a run whose cells are all done, from their files."""
    students, flags = judged_students(context)
    return make_record(
        **_common(context, cells, started),
        status="complete",
        data=data_info(context),
        distilled=set_info(context.distilled(), context.num_classes),
        overlap=overlap_info(context),
        students=students,
        aggregates=aggregate_students(students, context.plan.track),
        flags=flags,
        failure=None,
    )


def judged_students(context: RunContext) -> tuple[tuple[StudentResult, ...], tuple[Flag, ...]]:
    """The students that were judged, with their raw outcomes, and the checks on them."""
    students = []
    flags: list[Flag] = []
    for index in context.judged:
        facts = context.student_facts(index)
        clean = unpack_bits(facts["clean"])
        results = [
            AttackBits(
                attack=found.attack,
                eps=found.threat.eps,
                seed=found.seed,
                robust=pack_bits(found.robust),
                tried=_tried(found, clean),
                broken=found.broken,
                violations=found.violations.examples,
                forwards=found.forwards,
                batch_size=found.batch_size,
                verify_batch_size=found.verify_batch_size,
                warnings=found.warnings,
            )
            for attack in context.plan.attacks
            for found in read_outcomes(context, attack.name, index)
        ]
        students.append(StudentResult(**facts, attacks=tuple(results)))
        flags += [Flag(student=index, **check) for check in read_json(context.sanity_path(index))]
    return tuple(students), tuple(flags)


def save_witnesses(context: RunContext, record: Record) -> None:
    """Write the witnesses of a run that kept them: one for each student and example that fell."""
    images = context.evaluation.pixels().cpu()
    parts = [
        load(context.witness_path(attack.name, group), images)[0]
        for attack in context.plan.attacks
        for group in context.groups(attack.name)
    ]
    about = {"run_id": record.run_id, "results_sha256": record.results_sha256}
    save(context.folder / WITNESSES_FILE, merge(parts), images, about)


def _tried(outcome: AttackOutcome, clean: Tensor) -> str | None:
    """Which examples were attacked; None where it is all that were right."""
    return None if torch.equal(outcome.tried, clean) else pack_bits(outcome.tried)


def failed(
    context: RunContext,
    cells: Sequence[Cell],
    started: datetime.datetime,
    stage: str,
    cell: str,
    error: RobustDDError,
) -> Record:
    """The record of a run that failed.

    Args:
        context: the run.
        cells: the cells that are known so far.
        started: when the run was first started.
        stage: the stage that failed, or "set-up".
        cell: the cell that failed, where that is known, else the stage.
        error: why.
    """
    return make_record(
        **_common(context, cells, started),
        status="failed",
        data=None,
        distilled=None,
        students=(),
        aggregates=None,
        flags=(),
        failure=Failure(
            stage=stage,
            cell=cell,
            error=type(error).__name__,
            reason=" ".join(str(error).split())[:MAX_REASON],
        ),
    )


def _reused(context: RunContext) -> ReusedSet | None:
    """The run that the set was taken from, if it was; a run that fails may not have its data."""
    try:
        return None if reused(context) is None else read_reused(context.folder)
    except RobustDDError:
        return None


def _stage_times(cells: Sequence[Cell], reused: ReusedSet | None) -> tuple[StageTime, ...]:
    """Costs by stage, from the receipts of its cells, or from the run a set was taken from."""
    times = [] if reused is None else list(reused.stages)
    for stage in STAGES[2:] if reused else STAGES:
        found = [cell.receipt() for cell in cells if cell.stage == stage]
        receipts = [receipt for receipt in found if receipt is not None]
        if receipts:
            wall = sum(r.wall_s for r in receipts)
            items = sum(r.items for r in receipts)
            times.append(
                StageTime(
                    stage=stage,
                    cells=len(receipts),
                    wall_s=round(wall, 3),
                    items=items,
                    unit=receipts[0].unit,
                    items_per_s=round(items / wall, 3) if wall > 0 else 0.0,
                    peak_bytes=max(r.peak_bytes for r in receipts),
                )
            )
    return tuple(times)


def _processes(cells: Sequence[Cell], reused: ReusedSet | None) -> tuple[StageProcess, ...]:
    """What did the work, each kind of process once a stage."""
    found = [] if reused is None else list(reused.processes)
    for stage in STAGES[2:] if reused else STAGES:
        receipts = [cell.receipt() for cell in cells if cell.stage == stage]
        kinds = Counter(r.process for r in receipts if r is not None and r.process is not None)
        found += [
            StageProcess(stage=stage, cells=count, process=kind)
            for kind, count in sorted(kinds.items(), key=lambda pair: pair[0].model_dump_json())
        ]
    return tuple(found)


def _common(
    context: RunContext, cells: Sequence[Cell], started: datetime.datetime
) -> dict[str, Any]:
    """What complete and failed records share."""
    plan = context.plan
    here = process(plan.device)
    reused = _reused(context)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": plan.run_id(),
        "split": plan.split,
        "track": plan.track,
        "track_sha256": plan.track.sha256(),
        "method": MethodInfo(
            name=plan.method,
            plugin=plan.plugin,
            distribution=plan.distribution,
            version=plan.version,
            preset=plan.preset,
            config=dict(plan.config),
            reference=context.reference,
        ),
        "attacks": tuple(
            AttackInfo(name=a.name, plugin=a.plugin, version=a.version, config=dict(a.config))
            for a in plan.attacks
        ),
        "seed": plan.seed,
        "device": plan.device,
        "threads": plan.threads,
        "torch": plan.torch,
        "harness": plan.harness,
        "further": plan.further(),
        "command": plan.recorded_command(),
        "costs": Costs(
            started=started,
            finished=max(started, now),  # a clock may be set back
            stages=_stage_times(cells, reused),
            environment=environment(),
            commit=here.commit,
            adopted=None if reused is None else reused.origin,
            processes=_processes(cells, reused),
        ),
    }


def overlap_info(context: RunContext) -> OverlapInfo | None:
    """Which images of the set are copies of others; None for a reference, which may be the data."""
    if context.reference:
        return None
    images = context.distilled().decoded()[0].to(context.device)
    found = overlap(images, context.train.images, context.whole_evaluation.images)
    return OverlapInfo(**dataclasses.asdict(found))


def data_info(context: RunContext) -> DataInfo:
    """What a record says of the data."""
    train, evaluation = context.data_hashes
    channels, height, width = context.shape_CHW
    return DataInfo(
        dataset=context.plan.track.data.dataset,
        num_classes=context.num_classes,
        shape=(channels, height, width),
        train_examples=len(context.train),
        train_sha256=train,
        evaluation_examples=len(context.whole_evaluation),
        evaluation_sha256=evaluation,
        classes=context.whole_data().classes,
    )

"""Rows of the board as data, from standings and the folders of their runs."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from robustdd_bench.board.confirmations import deviation
from robustdd_bench.board.divisions import IMPORTED, MARKS, has_own_preprocessing, is_taught
from robustdd_bench.board.method_papers import OURS, paper_of
from robustdd_bench.board.naming import Named, distinct_names
from robustdd_bench.board.publish import Published
from robustdd_bench.board.ranking import Division, Ranked, divisions
from robustdd_bench.board.schema import (
    AttackAloneContent,
    AttackContent,
    CheckContent,
    ConfirmationContent,
    ConfirmedContent,
    CostContent,
    RobustContent,
    RowContent,
    RunContent,
    RunRobustContent,
    ScoresContent,
    SpreadContent,
    TrackContent,
)
from robustdd_bench.board.standings import Standing
from robustdd_bench.evaluation.sanity.meanings import CHECK_MEANINGS
from robustdd_bench.evaluation.statistics.means import mean
from robustdd_bench.filenames import SET_FILE, SET_PICTURE
from robustdd_bench.protocol.tracks import NetworkSpec, PreprocessingSpec, Track
from robustdd_bench.records.parts import StageTime
from robustdd_bench.records.record import Record

MAKING = ("experts", "distill")
"""Stages that make a set; the others judge it."""


FRONT = "cifar10-small-ipc5"
"""The track that the board begins with."""


def track_order(names: Iterable[str]) -> list[str]:
    """Names of tracks as the board shows them: the front track, then the others by name."""
    return sorted(set(names), key=lambda name: (name != FRONT, name))


def track_content(runs: Sequence[Published], root: Path) -> TrackContent:
    """The content of a track from its published runs, all of one version."""
    folders = {run.record.run_id: run for run in runs}
    records = [run.record for run in runs]
    first = records[0]
    track, data = first.track, first.data
    assert data is not None
    return TrackContent(
        track=track.name,
        version=track.version,
        summary=track.summary,
        sha256=first.track_sha256,
        family=track.family,
        dataset=data.dataset,
        num_classes=data.num_classes,
        shape=data.shape,
        ipc=track.data.ipc,
        network=_network(track.network),
        student_network=_network(track.student_network or track.network),
        preprocessing=_preprocessing(track.preprocessing),
        training=_training(track),
        students=track.students,
        norm=track.threat.norm,
        headline_eps=track.threat.headline,
        ladder=track.threat.ladder,
        attacks=tuple(
            AttackContent(
                name=spec.name,
                on=spec.on,
                at=spec.at,
                examples=spec.examples,
                config=planned.config,
            )
            for spec, planned in zip(track.attacks, first.attacks, strict=True)
        ),
        train_examples=data.train_examples,
        evaluation_examples=data.evaluation_examples,
        ranked_seeds=track.ranked_seeds,
        rows=named(
            row_content(division, row, folders, root)
            for division in divisions(records)
            for row in division.rows
        ),
    )


def named(rows: Iterable[RowContent]) -> tuple[RowContent, ...]:
    """The rows of a track, with labels where several are of one method."""
    rows = tuple(rows)
    names = distinct_names([Named(r.division, r.method, r.preset, r.config, r.id) for r in rows])
    return tuple(
        row if name == row.method else row.model_copy(update={"label": name})
        for row, name in zip(rows, names, strict=True)
    )


def _training(track: Track) -> Literal["natural", "pgd", "trades", "teacher"]:
    if track.students.adversarial is not None:
        return track.students.adversarial.flavour
    return "natural" if track.students.teaching is None else "teacher"


def row_content(
    division: Division, row: Ranked, published: Mapping[str, Published], root: Path
) -> RowContent:
    """One row, and the runs it is made of."""
    standing = row.standing
    first = standing.records[0]
    assert first.distilled is not None
    runs, others = (
        tuple(run_content(published[record.run_id], root) for record in records)
        for records in (standing.records, standing.others)
    )
    costs = [run.cost for run in runs]
    return RowContent(
        id=standing.id,
        method=name_of(published[first.run_id]),
        plugin=first.method.plugin,
        distribution=first.method.distribution,
        version=first.method.version,
        preset=first.method.preset,
        config=first.method.config,
        reference=standing.reference,
        division=division.name,
        rank=row.rank,
        tied=row.tied,
        level_with=row.level_with,
        images=first.distilled.images,
        seeds=tuple(record.seed for record in standing.records),
        clean=SpreadContent(**asdict(standing.clean)),
        headline=SpreadContent(**asdict(standing.headline)),
        robust=tuple(
            RobustContent(eps=eps, **asdict(found))
            for eps, found in zip(first.track.threat.ladder, standing.robust, strict=True)
        ),
        attacks=_attacks_alone(standing),
        scores=ScoresContent(**asdict(row.scores)),
        cost=CostContent(
            device=costs[0].device,
            hardware="; ".join(sorted({cost.hardware for cost in costs})),
            distillation_s=mean([cost.distillation_s for cost in costs]),
            evaluation_s=mean([cost.evaluation_s for cost in costs]),
            peak_bytes=max(cost.peak_bytes for cost in costs),
            distillation_peak_bytes=max(cost.distillation_peak_bytes for cost in costs),
        ),
        checks=_checks(standing),
        marks=tuple(_marks(standing)),
        command=runs[0].command,
        runs=runs,
        other_runs=others,
        confirmed=_confirmed((*runs, *others)),
        training_images=_decoded(standing),
        stored_bytes=_stored(standing),
        paper=paper_of(standing.method, first.method.plugin, first.method.distribution),
    )


def name_of(run: Published) -> str:
    """What a row is called: its method; of a set made elsewhere what its submitter calls it."""
    said = run.submission
    return said.name if said is not None and said.name else run.record.method.name


def _decoded(standing: Standing) -> int | None:
    """How many images mosaics decode to; None where nothing is a mosaic."""
    sets = [record.distilled for record in standing.records if record.distilled is not None]
    return max((s.training_images for s in sets if s.mosaic > 1), default=None)


def _stored(standing: Standing) -> int | None:
    """What the largest set of a row weighs, where students may be taught by a stored teacher."""
    if standing.records[0].track.students.teaching is None:
        return None
    found = [
        record.distilled.stored_bytes(record.data.shape, record.data.num_classes)
        for record in standing.records
        if record.distilled is not None and record.data is not None
    ]
    return max(found, default=None)


def _confirmed(runs: Sequence[RunContent]) -> ConfirmedContent | None:
    """How often runs were made again, and where that led furthest from them."""
    found = [(again, run.seed) for run in runs for again in run.confirmations]
    if not found:
        return None
    furthest, seed = max(found, key=lambda pair: abs(pair[0].largest_difference))
    return ConfirmedContent(
        count=len(found),
        largest_difference=furthest.largest_difference,
        largest_at=furthest.largest_at,
        seed=seed,
    )


def _confirmation(run: Record, again: Published, root: Path) -> ConfirmationContent:
    record, cost = again.record, _cost(again.record)
    assert record.aggregates is not None
    assert record.distilled is not None
    assert run.distilled is not None
    furthest = deviation(run, record)
    return ConfirmationContent(
        run_id=record.run_id,
        clean=record.aggregates.clean.mean,
        robust=tuple(item.accuracy.mean for item in record.aggregates.robust),
        largest_difference=furthest.difference,
        largest_at=furthest.eps,
        same_set=record.distilled.sha256 == run.distilled.sha256,
        same_results=(record.distilled, record.students) == (run.distilled, run.students),
        device=cost.device,
        hardware=cost.hardware,
        torch=record.torch,
        harness=record.harness,
        version=record.method.version,
        commit=record.costs.commit.sha if record.costs.commit else None,
        folder=again.folder.relative_to(root).as_posix(),
        submission=again.submission,
    )


def run_content(run: Published, root: Path) -> RunContent:
    """One run of a row."""
    record, folder = run.record, run.folder.relative_to(root).as_posix()
    aggregates, distilled, costs = record.aggregates, record.distilled, record.costs
    assert aggregates is not None
    assert distilled is not None
    return RunContent(
        run_id=record.run_id,
        seed=record.seed,
        images=distilled.images,
        labels=distilled.labels,
        learning_rate=distilled.learning_rate,
        clean=aggregates.clean,
        headline=aggregates.headline,
        robust=tuple(
            RunRobustContent(eps=item.eps, **item.accuracy.model_dump())
            for item in aggregates.robust
        ),
        cost=_cost(record),
        command=command_of(record, folder),
        folder=folder,
        set_file=None if record.method.reference else f"{folder}/{SET_FILE}",
        preview=f"{folder}/{SET_PICTURE}",
        results_sha256=record.results_sha256,
        set_sha256=distilled.sha256,
        torch=record.torch,
        harness=record.harness,
        commit=costs.commit.sha if costs.commit else None,
        adopted_from=costs.adopted.run_id if costs.adopted else None,
        submission=run.submission,
        confirmations=tuple(_confirmation(record, again, root) for again in run.confirmations),
        finished=costs.finished.astimezone(datetime.UTC).date().isoformat(),
    )


def command_of(record: Record, folder: str) -> str:
    """What makes a run again; of a set made elsewhere, in the folder of the board, from its file.

    Args:
        record: of the run.
        folder: of the published run, below that of the board.
    """
    if not record.given:
        return record.command_to_repeat
    words = shlex.split(record.command_to_repeat)
    kept = words[words.index("--track") :]
    place = kept.index("--set")
    return shlex.join(
        ["robustdd", "evaluate", f"{folder}/{SET_FILE}", *kept[:place], *kept[place + 2 :]]
    )


def _cost(record: Record) -> CostContent:
    environment = record.costs.environment
    accelerators = environment.get("accelerators")
    named: object = environment.get("processor")
    if record.device == "cuda" and isinstance(accelerators, list) and accelerators:
        named = accelerators[0]

    def stages(making: bool) -> list[StageTime]:
        return [s for s in record.costs.stages if (s.stage in MAKING) is making]

    making, judging = stages(True), stages(False)
    return CostContent(
        device=record.device,
        hardware=(str(named) if named else "unknown")[:100],
        distillation_s=sum(stage.wall_s for stage in making),
        evaluation_s=sum(stage.wall_s for stage in judging),
        peak_bytes=max((stage.peak_bytes for stage in (*making, *judging)), default=0),
        distillation_peak_bytes=max((stage.peak_bytes for stage in making), default=0),
    )


def _attacks_alone(standing: Standing) -> tuple[AttackAloneContent, ...]:
    tables = [record.aggregates.attacks for record in standing.records if record.aggregates]
    return tuple(
        AttackAloneContent(
            attack=items[0].attack,
            eps=items[0].eps,
            mean=mean([item.accuracy.mean for item in items]),
            examples=items[0].accuracy.n_examples,
        )
        for items in zip(*tables, strict=True)
    )


def _checks(standing: Standing) -> tuple[CheckContent, ...]:
    flags = [flag for record in standing.records for flag in record.flags]
    students = Counter(flag.name for flag in flags)
    passed = Counter(flag.name for flag in flags if flag.passed)
    return tuple(
        CheckContent(
            name=name,
            meaning=CHECK_MEANINGS.get(name, ""),
            passed=passed[name],
            students=count,
        )
        for name, count in students.items()
    )


def _marks(standing: Standing) -> list[str]:
    """Keys of MARKS that hold for any run of a row, in the order of MARKS."""
    found = set()
    first = standing.records[0]
    if standing.reference:
        found.add("reference")
    if first.distilled is not None and first.distilled.labels == "soft":
        found.add("soft labels")
    if first.distilled is not None and is_taught(first.distilled, first.track):
        found.add("teacher")
    if IMPORTED in standing.division.split(", "):
        found.add("imported")
    if len({record.seed for record in standing.records}) == 1:
        found.add("one seed")
    if not standing.reference and not standing.ranked:
        found.add("seeds not ranked")
    if standing.others:
        found.add("other seeds")
    if len({record.method.version for record in standing.records}) > 1:
        found.add("several versions")
    seeds_of: dict[str, set[int]] = defaultdict(set)
    for record in (*standing.records, *standing.others):
        distilled, costs = record.distilled, record.costs
        assert distilled is not None
        seeds_of[distilled.sha256].add(record.seed)
        if record.method.distribution != OURS:
            found.add("other plugin")
        if distilled.learning_rate is not None and record.track.students.own_rate:
            found.add("own rate")
        if distilled.augmentation is not None:
            found.add("own augmentation")
        if has_own_preprocessing(distilled, record.track):
            found.add("own preprocessing")
        if distilled.pixel_min < 0 or distilled.pixel_max > 1:
            found.add("beyond pixels")
        if distilled.mosaic > 1:
            found.add("mosaics")
        if record.overlap is not None and record.overlap.near_test:
            found.add("near test images")
        if record.overlap is not None and record.overlap.exact_train == record.overlap.images:
            found.add("training images")
        if costs.adopted is not None:
            found.add("set reused")
        if costs.dirty:
            found.add("changed code")
        if costs.mixed:
            found.add("mixed")
    if not standing.reference and any(len(seeds) > 1 for seeds in seeds_of.values()):
        found.add("one set")
    return [mark for mark in MARKS if mark in found]


def _network(spec: NetworkSpec) -> str:
    options = ", ".join(f"{key} {value}" for key, value in spec.options.items())
    return f"{spec.name} ({options})" if options else spec.name


def _preprocessing(spec: PreprocessingSpec) -> str:
    if spec.kind == "zca":
        return f"zca (epsilon {spec.epsilon:g})"
    if spec.kind == "normalise":
        mean_, std = (", ".join(f"{value:g}" for value in row) for row in (spec.mean, spec.std))
        return f"normalise (mean {mean_}; std {std})"
    return spec.kind

"""What a report says of its runs, whatever the format: facts, checks, plots, pictures that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustdd_bench.drawing.rendering import setting
from robustdd_bench.evaluation.sanity.meanings import CHECK_MEANINGS
from robustdd_bench.protocol.suite import suite_note
from robustdd_bench.records.record import Record
from robustdd_bench.report.charts import (
    Chart,
    accuracy_chart,
    comparison_chart,
    metric_charts,
)
from robustdd_bench.report.reading import Picture, RunReport, TrackGroup, by_track

MAX_INLINE = 24 * 2**20
"""Snapshots of all runs that a page holds, in bytes."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """A sanity check over the students of a run."""

    name: str
    meaning: str
    passed: int
    students: int
    evidence: tuple[tuple[str, tuple[int, ...]], ...]
    """Each text once, with the students that it is of."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown."""

    title: str
    runs: tuple[RunReport, ...]
    groups: tuple[TrackGroup, ...]
    comparisons: tuple[Chart | None, ...]
    """Of each group: accuracy over eps, where two runs have results."""
    accuracy: tuple[Chart | None, ...]
    """Of each run that has results."""
    metrics: tuple[tuple[Chart, ...], ...]
    pictures: tuple[tuple[Picture, ...], ...]
    """The snapshots of each run that fit."""


def make_report(runs: Sequence[RunReport]) -> Report:
    """Lay out the report of some runs."""
    groups = by_track(runs)
    comparisons = []
    for group in groups:
        results = [
            (label, record.aggregates)
            for label, record in group.results
            if record.aggregates is not None
        ]
        track = group.runs[0][1].plan.track
        comparisons.append(comparison_chart(track, results) if len(results) > 1 else None)
    return Report(
        title=_title(runs),
        runs=tuple(runs),
        groups=tuple(groups),
        comparisons=tuple(comparisons),
        accuracy=tuple(_accuracy(run) for run in runs),
        metrics=tuple(_metrics(run) for run in runs),
        pictures=tuple(_fitting(run.pictures, MAX_INLINE // len(runs)) for run in runs),
    )


def _title(runs: Sequence[RunReport]) -> str:
    methods = list(dict.fromkeys(run.plan.method for run in runs))
    tracks = list(dict.fromkeys(run.plan.track.id for run in runs))
    shown = ", ".join(methods[:4]) + (f" and {len(methods) - 4} more" if len(methods) > 4 else "")
    return f"{shown} on {tracks[0] if len(tracks) == 1 else f'{len(tracks)} tracks'}"


def _accuracy(run: RunReport) -> Chart | None:
    if run.record is None or run.record.aggregates is None:
        return None
    return accuracy_chart("Accuracy over ε", run.plan.track, run.record.aggregates)


def _metrics(run: RunReport) -> tuple[Chart, ...]:
    """The values over steps; those of whole students are in the table, once there is one."""
    ended = run.record is not None and run.record.aggregates is not None
    found = [one for one in run.metrics.series if not (ended and one.stage == "students")]
    return tuple(metric_charts(found))


def _fitting(pictures: tuple[Picture, ...], budget: int) -> tuple[Picture, ...]:
    """The pictures, or so many of them, evenly spaced with both ends, as fit into a budget."""
    found = pictures
    while len(found) > 1 and sum(len(picture.data) for picture in found) > budget:
        keep = len(found) - 1
        step = (len(pictures) - 1) / max(1, keep - 1)
        found = tuple(pictures[round(len(pictures) - 1 - step * i)] for i in range(keep))[::-1]
    return found


def passed(record: Record) -> bool:
    """Whether every sanity check passed."""
    return all(flag.passed for flag in record.flags)


def checks(record: Record) -> list[CheckReport]:
    """The sanity checks, those that failed first."""
    found = []
    for name in dict.fromkeys(flag.name for flag in record.flags):
        flags = [flag for flag in record.flags if flag.name == name]
        texts: dict[str, list[int]] = {}
        for flag in flags:
            failed = "" if flag.passed else "failed: "
            texts.setdefault(f"{failed}{flag.evidence}", []).append(flag.student)
        found.append(
            CheckReport(
                name=name,
                meaning=CHECK_MEANINGS.get(name, ""),
                passed=sum(flag.passed for flag in flags),
                students=len(flags),
                evidence=tuple((text, tuple(students)) for text, students in texts.items()),
            )
        )
    return sorted(found, key=lambda check: check.passed == check.students)


def facts(run: RunReport) -> list[tuple[str, str]]:
    """What was run: method, protocol, versions, where and when."""
    plan, record = run.plan, run.record
    students = plan.track.students
    student = plan.track.student_network or plan.track.network
    threat = plan.track.threat
    found = [
        ("Run", plan.run_id() if record is None else record.run_id),
        ("Method", f"{plan.method} (plugin {plan.plugin}, {plan.distribution} {plan.version})"),
        ("Changed in the call", ", ".join(run.changed) or "nothing"),
        ("Track", f"{plan.track.id}, {plan.split} split, seed {plan.seed}"),
        ("Data", f"{plan.track.data.dataset}, {plan.track.data.ipc} images a class"),
        ("Students", f"{students.count} × {student.name}, {students.epochs} epochs"),
        ("Threat", f"{threat.norm}, headline {threat.headline:g}, up to {threat.ladder[-1]:g}"),
        ("Robust accuracy", suite_note(plan.track.attacks, threat.headline)),
        ("Versions", f"robustdd-bench {plan.harness}, torch {plan.torch}"),
        ("Device", f"{plan.device}, {plan.threads} CPU thread{'s' * (plan.threads > 1)}"),
    ]
    if record is None:
        return found
    costs = record.costs
    if record.distilled is not None:
        found.append(("Set", _set_text(record)))
    if costs.commit is not None:
        changed = ", changed since" if costs.commit.dirty else ""
        found.append(("Commit", f"{costs.commit.sha[:12]}{changed}"))
    if costs.adopted is not None:
        found.append(("Set reused from run", costs.adopted.run_id))
    machine = [
        f"{key.replace('_', ' ')} {value if isinstance(value, str) else setting(value)}"
        for key, value in costs.environment.items()
        if isinstance(value, str | int | float) and value != ""
    ]
    found.append(("Machine", ", ".join(machine)))
    found.append(("When", f"{costs.started:%Y-%m-%d %H:%M} to {costs.finished:%Y-%m-%d %H:%M} UTC"))
    found.append(("Hash of the results", record.results_sha256))
    found += [("Warning", text) for text in record.remarks]
    return found


def _set_text(record: Record) -> str:
    found = record.distilled
    assert found is not None
    rate = "" if found.learning_rate is None else f", its own learning rate {found.learning_rate:g}"
    pixels = f"pixels from {found.pixel_min:.2f} to {found.pixel_max:.2f}"
    mosaics = f" (mosaics of {found.training_images})" if found.mosaic > 1 else ""
    return f"{found.images} images{mosaics}, {found.labels} labels{rate}; {pixels}"

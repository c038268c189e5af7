"""A report as Markdown: the text, and its plots and pictures as files in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from robustdd_bench.drawing.figures import attack_label
from robustdd_bench.drawing.rendering import mebibytes, seconds, setting, visible
from robustdd_bench.protocol.tracks import Track, eps_label
from robustdd_bench.records.parts import AggregateInfo
from robustdd_bench.records.record import Record
from robustdd_bench.report.charts import Chart
from robustdd_bench.report.content import Report, checks, facts, passed
from robustdd_bench.report.html import svg
from robustdd_bench.report.reading import RunReport
from robustdd_bench.text.tables import markdown as table
from robustdd_bench.text.tables import with_deviation
from robustdd_bench.text.terminal import one_line, rate_text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#~])")


@dataclass(slots=True)
class MarkdownReport:
    """A report's text, and the files that it names."""

    folder: str
    """Name of the folder of the files, beside the text."""
    text: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """By name in that folder."""


def escaped(text: object) -> str:
    """A text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", visible(one_line(text, 2000)).replace("&", "&amp;"))


def block(lines: Sequence[str]) -> str:
    """Lines as they are, in a fence that none of them can close."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *(visible(one_line(line, 2000)) for line in lines), fence])


def markdown(report: Report, folder: str) -> MarkdownReport:
    """The text and the files.

    Args:
        report: what is shown.
        folder: name of the folder of the files.
    """
    made = MarkdownReport(folder)
    parts = [
        f"# {escaped(report.title)}",
        "Accuracies are in percent: mean ± standard deviation over students; in brackets the 95 % "
        "Wilson interval over examples; * marks the headline ε. Robust accuracy is per example the "
        "worst case over the attacks that were run at that ε and at smaller ones; not all are run "
        "at each, as the facts of a run say.",
    ]
    if len(report.runs) > 1:
        parts += _groups(report, made)
    for place, run in enumerate(report.runs):
        parts += _run(report, place, run, made)
    made.text = "\n\n".join(part.rstrip() for part in parts) + "\n"
    return made


def _headings(track: Track) -> list[str]:
    marks = [
        f"ε {eps_label(eps)}{' *' if eps == track.threat.headline else ''}"
        for eps in track.threat.ladder
    ]
    return ["clean", *marks]


def _cell(found: AggregateInfo) -> str:
    return (
        f"{with_deviation(found.mean, found.std)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    )


def _cells(record: Record) -> list[str]:
    found = record.aggregates
    assert found is not None
    return [_cell(found.clean), *(_cell(row.accuracy) for row in found.robust)]


def _plot(made: MarkdownReport, name: str, chart: Chart) -> str:
    made.files[f"{name}.svg"] = svg(chart).encode("utf-8")
    below = f"\n\n{escaped('; '.join(chart.notes))}" if chart.notes else ""
    return f"![{escaped(chart.title)}]({made.folder}/{name}.svg){below}"


def _groups(report: Report, made: MarkdownReport) -> Iterator[str]:
    for number, (group, chart) in enumerate(
        zip(report.groups, report.comparisons, strict=True), start=1
    ):
        track = group.runs[0][1].plan.track
        headings = _headings(track)
        yield f"## {escaped(track.id)}"
        rows = []
        for index, run in group.runs:
            record = run.record
            name = f"{index}: {escaped(run.label)}"
            if record is None or record.aggregates is None:
                rows.append([name, run.status, *["–"] * len(headings), "–"])
            else:
                verdict = "passed" if passed(record) else "failed"
                rows.append([name, run.status, *_cells(record), verdict])
        yield table(["run", "status", *headings, "checks"], rows)
        if chart is not None:
            yield _plot(made, f"comparison-{number}", chart)
        different = group.different_settings()
        if different:
            yield "Settings that differ:"
            yield table(
                ["setting", *(f"run {index}" for index, _ in group.runs)],
                [[escaped(k), *(escaped(setting(v)) for v in vs)] for k, vs in different],
            )


def _run(report: Report, place: int, run: RunReport, made: MarkdownReport) -> Iterator[str]:
    number = place + 1
    head = f"{number}: {run.label}" if len(report.runs) > 1 else run.label
    record, track = run.record, run.plan.track
    yield f"## {escaped(head)} on {escaped(track.id)}: {run.status}"
    yield escaped(track.summary)
    yield block([run.command])
    if record is not None and record.failure is not None:
        failure = record.failure
        yield f"**Failed in {escaped(failure.cell)}**: {escaped(failure.reason)}"
    elif run.status == "unfinished":
        yield "**Not finished**: it is running, was interrupted, or was killed."
    for text in run.metrics.remarks:
        yield escaped(text)
    yield "\n".join(f"- {escaped(key)}: {escaped(value)}" for key, value in facts(run))
    if record is not None and record.aggregates is not None:
        yield from _accuracy(record, track)
    elif run.done:
        yield "Done so far: " + ", ".join(f"{stage} {count}" for stage, count in run.done)
    chart = report.accuracy[place]
    if chart is not None:
        yield _plot(made, f"run-{number}-accuracy", chart)
    pictures = [*run.pictures, *([run.final] if run.final is not None else [])]
    if pictures:
        yield "### Images"
        lines = []
        for picture in pictures:
            name = f"run-{number}-{picture.name}.png"
            made.files[name] = picture.data
            lines.append(f"{picture.caption}:\n\n![{picture.caption}]({made.folder}/{name})")
        yield "\n\n".join(lines)
    if report.metrics[place]:
        yield "### Step by step"
        for index, found in enumerate(report.metrics[place], start=1):
            yield _plot(made, f"run-{number}-metric-{index}", found)
    if record is not None and record.flags:
        yield "### Sanity checks"
        yield "\n".join(_checks(record))
    if record is not None and record.costs.stages:
        yield "### Costs"
        yield table(
            ["stage", "cells", "time", "throughput", "peak memory"],
            [
                [
                    escaped(stage.stage),
                    str(stage.cells),
                    seconds(stage.wall_s),
                    rate_text(stage.items_per_s, escaped(stage.unit)),
                    mebibytes(stage.peak_bytes),
                ]
                for stage in record.costs.stages
            ],
        )
    yield "### Settings"
    settings = run.plan.config.items()
    yield "\n".join(f"- {escaped(k)}: {escaped(setting(v))}" for k, v in settings) or "none"
    if run.log:
        yield "### End of the log"
        yield block(run.log)


def _accuracy(record: Record, track: Track) -> Iterator[str]:
    found = record.aggregates
    assert found is not None
    yield "### Accuracy"
    rows = [[f"all {len(record.students)}", *_cells(record)]]
    for place, student in enumerate(record.students):
        values = [found.clean, *(row.accuracy for row in found.robust)]
        rows.append([str(student.index), *(f"{100 * value.values[place]:.1f}" for value in values)])
    headings = _headings(track)
    yield table(["student", *headings], rows)
    means = {(row.attack, row.eps): row.accuracy.mean for row in found.attacks}
    alone = []
    for spec in track.attacks:
        cells = [means.get((spec.name, eps)) for eps in track.threat.ladder]
        shown = ["–" if mean is None else f"{100 * mean:.1f}" for mean in cells]
        alone.append([escaped(attack_label(spec)), *shown])
    yield table(["attack", *headings[1:]], alone)


def _checks(record: Record) -> Iterator[str]:
    for check in checks(record):
        yield f"- {escaped(check.name)}: {check.passed} of {check.students} passed"
        for text, students in check.evidence:
            yield f"  - {escaped(text)} (students {', '.join(map(str, students))})"

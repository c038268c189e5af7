"""Rows of the tables that people read: one row a run or a method, percent with their deviations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from robustdd_bench.protocol.tracks import Track, eps_label
from robustdd_bench.runs.record_parts import AggregateInfo
from robustdd_bench.runs.records import Record

if TYPE_CHECKING:
    from robustdd_bench.board.ranking import Ranked


def percent(accuracy: AggregateInfo) -> str:
    """Mean and standard deviation over students, in percent: "63.1 ± 1.2"."""
    if accuracy.std is None:
        return f"{100 * accuracy.mean:.1f}"
    return f"{100 * accuracy.mean:.1f} ± {100 * accuracy.std:.1f}"


def columns(track: Track) -> list[str]:
    """Headings: method, clean and each eps, the headline one marked."""
    marks = [
        f"{eps_label(eps)}{' *' if eps == track.threat.headline else ''}"
        for eps in track.threat.ladder
    ]
    return ["method", "images", "clean", *marks]


def row(record: Record) -> list[str]:
    """One run as a row; a run with a failed check is marked.

    Raises:
        ValueError: the run failed, so there is nothing to show.
    """
    if record.aggregates is None or record.distilled is None:
        raise ValueError(f"run {record.run_id} has no results")
    name = record.method.name
    if record.method.reference:
        name += " (reference)"
    if not all(flag.passed for flag in record.flags):
        name += " (flagged)"
    if record.split == "validation":
        name += " (validation)"
    cells = [percent(item.accuracy) for item in record.aggregates.robust]
    return [name, str(record.distilled.images), percent(record.aggregates.clean), *cells]


def division_title(name: str) -> str:
    """How a division is called above its table."""
    return f"{name.capitalize()} labels"


SCORE_COLUMNS = ("rank", "method", "clean", "headline", "DR", "RR", "I-RR", "gain", "gain *")


def score_cells(row: Ranked) -> list[str]:
    """A row of the field's scores, under `SCORE_COLUMNS`, in percent and points."""
    scores = row.scores
    values = (
        row.standing.clean.mean,
        row.standing.headline.mean,
        scores.drop_rate,
        scores.robustness_ratio,
        scores.improved_robustness_ratio,
    )
    shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
    gains = (scores.gain_clean, scores.gain_headline)
    shown += ["-" if value is None else f"{100 * value:+.1f}" for value in gains]
    return [*row.cells()[:2], *shown]


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows
    ]
    return "\n".join(lines) + "\n"

"""The tables of docs/results.md and of the README, and its picture, from the published records."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robustdd_bench.board.divisions import PLAIN, division_title
from robustdd_bench.board.naming import Named, distinct_names
from robustdd_bench.board.publish import Published, current, newest
from robustdd_bench.board.rows import track_content, track_order
from robustdd_bench.board.standings import standings
from robustdd_bench.board.views.captions import RULE, accuracy_note
from robustdd_bench.board.views.tables import board_tables, row_notes
from robustdd_bench.errors import UsageError
from robustdd_bench.files import write_bytes
from robustdd_bench.protocol.suite import worst_case_over
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.record import Record
from robustdd_bench.text.tables import markdown_table, marked

FRONT_ROWS = 10


def section(runs: list[Published], root: Path) -> str:
    """Markdown: a table a track, with what it was measured on and the commands that repeat it."""
    parts = []
    for name in track_order(run.record.track.name for run in runs):
        records = current(runs, name)
        track = track_content(newest(runs, name), root)
        tables = board_tables(track)
        parts.append(f"**{track.track}@{track.version}**: {track.summary}.\n")
        for division, table in tables.items():
            if len(tables) > 1 or division != PLAIN:
                parts.append(f"{division_title(division)}:\n")
            parts.append(markdown_table(table))
        made_again = "".join(f" {note}" for note in row_notes(track.rows))
        parts.append(f"{accuracy_note(track, f'{track.norm} eps')} {_where(records)}{made_again}\n")
        commands = "\n".join(row.command for row in track.rows)
        parts.append(f"```console\n{commands}\n```\n")
    if not parts:
        return "Nothing has been published yet.\n"
    return "\n".join(
        [f"{RULE} `robustdd board compare A B` gives the interval of a pair.\n", *parts]
    )


def _where(records: Sequence[Record]) -> str:
    """Seeds, machines and versions of some records, in a sentence."""
    seeds = sorted({record.seed for record in records})
    machines = sorted({str(r.costs.environment.get("processor", "?")) for r in records})
    torch = sorted({record.torch for record in records})
    return (
        f"Seed {', '.join(map(str, seeds))}; measured on {'; '.join(machines)} "
        f"({', '.join(sorted({r.device for r in records}))}), torch {', '.join(torch)}."
    )


def with_section(text: str, runs: list[Published], root: Path) -> str:
    """The page of results with all tables between its marks.

    Raises:
        UsageError: the marks are missing.
    """
    return marked(text, "board", section(runs, root), "the page of results")


def front(runs: list[Published], root: Path) -> str:
    """Markdown: the first rows of the first track's first table, and what they are."""
    for name in track_order(run.record.track.name for run in runs)[:1]:
        track = track_content(newest(runs, name), root)
        tables = board_tables(track)
        division, table = next(iter(tables.items()))
        shown = replace(table, rows=table.rows[:FRONT_ROWS])
        more = sum(len(one.rows) for one in tables.values()) - len(shown.rows)
        left = f" {more} more rows are in docs/results.md." if more else ""
        titled = "" if division == PLAIN else f" {division_title(division)}."
        return (
            f"**{track.track}@{track.version}**: {track.summary}.{titled}\n\n"
            f"{markdown_table(shown)}\n"
            f"{accuracy_note(track, f'{track.norm} eps')}{left}\n"
        )
    return "Nothing has been published yet.\n"


def with_front(text: str, runs: list[Published], root: Path) -> str:
    """A README's text with the front table between its marks.

    Raises:
        UsageError: the marks are missing.
    """
    return marked(text, "front", front(runs, root), "the README")


def plot(path: Path, runs: list[Published], track: str) -> None:
    """Accuracy over eps of every published method of a track, as PNG.

    Raises:
        UsageError: nothing of that track is published.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = standings(current(runs, track))
    if not rows:
        raise UsageError(f"nothing of track {track!r} is published")
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    protocol = rows[0].records[0].track
    ladder = [0.0, *protocol.threat.ladder]
    infos = [standing.records[0].method for standing in rows]
    names = distinct_names(
        [
            Named("", standing.method, info.preset, info.config, standing.id)
            for standing, info in zip(rows, infos, strict=True)
        ]
    )
    for standing, name in zip(rows, names, strict=True):
        points = [standing.clean, *standing.robust]
        axes.errorbar(
            ladder,
            [100 * p.mean for p in points],
            yerr=[100 * (p.std_students or 0.0) for p in points],
            marker="o",
            markersize=4,
            capsize=2,
            linestyle="--" if standing.reference else "-",
            label=standing.label.replace(standing.method, name, 1),
        )
    axes.axvline(protocol.threat.headline, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(ladder, ["clean", *(eps_label(eps) for eps in protocol.threat.ladder)])
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"eps ({protocol.threat.norm}; dotted: headline)")
    axes.set_ylabel("accuracy, %")
    adversarial = protocol.students.adversarial
    training = f"{adversarial.flavour} training" if adversarial else "natural training"
    over = worst_case_over(protocol.attacks, protocol.threat.headline)
    axes.set_title(
        f"{protocol.id}: {training} on the set (bars: std over {protocol.students.count} "
        f"students)\n{textwrap.fill(over, 100)}",
        fontsize=8,
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())

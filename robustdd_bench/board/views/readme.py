"""The tables of docs/results.md and of the README, and its picture, from the published records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robustdd_bench.board.divisions import PLAIN, division_title
from robustdd_bench.board.publish import Published, current, newest
from robustdd_bench.board.rows import track_content, track_order
from robustdd_bench.board.views.captions import RULE, accuracy_note
from robustdd_bench.board.views.tables import board_tables, row_notes
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

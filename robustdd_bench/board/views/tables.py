"""The tables that people read and papers print, from the board's content or one record."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from robustdd_bench.board.divisions import PLAIN, division_title, in_order
from robustdd_bench.board.schema import RowContent, SpreadContent, TrackContent
from robustdd_bench.board.views.captions import (
    DAGGER,
    RULE,
    UNRANKED,
    accuracy_note,
    deviation,
    pairs_note,
)
from robustdd_bench.protocol.suite import suite_note
from robustdd_bench.protocol.tracks import eps_label, parse_eps
from robustdd_bench.records.record import Record
from robustdd_bench.text.tables import (
    Column,
    Table,
    TableCell,
    TableRow,
    listed,
    percent,
    plain,
    with_deviation,
)
from robustdd_bench.text.terminal import size_text

NORMS = {"Linf": "ℓ∞", "L2": "ℓ₂"}


def board_tables(track: TrackContent) -> dict[str, Table]:
    """The board of a track: a table a division, by its name."""
    return {name: _board_table(track, name, rows) for name, rows in _divisions(track)}


def score_tables(track: TrackContent) -> dict[str, Table]:
    """The field's scores of a track, which never rank: a table a division, by its name."""
    return {name: _score_table(track, name, rows) for name, rows in _divisions(track)}


def _divisions(track: TrackContent) -> Iterable[tuple[str, list[RowContent]]]:
    for name in in_order(row.division for row in track.rows):
        yield name, [row for row in track.rows if row.division == name]


def _board_table(track: TrackContent, division: str, rows: Sequence[RowContent]) -> Table:
    weighed = track.training == "teacher"
    stored = [Column("stored_bytes", "stored", minor=True)] * weighed
    columns = [
        *_place_columns(),
        Column("images", "images", minor=True),
        *stored,
        Column("seeds", "seeds", minor=True),
        Column("norm", None),
        Column("headline_eps", None),
        Column("examples", None),
        *_accuracy_columns(track.ladder, track.headline_eps, track.norm),
        Column("row", None),
        Column("run_ids", None),
    ]
    bests = [_highest(rows, index) for index in range(1 + len(track.ladder))]
    bests[1 + track.ladder.index(track.headline_eps)] = lambda row: row.rank == 1
    made = []
    for row in rows:
        accuracies = [
            _spread(value, best(row)) for value, best in zip(_levels(row), bests, strict=True)
        ]
        cells = [
            *_place_cells(track, division, row),
            plain(row.images),
            *([_weight(row)] * weighed),
            listed(row.seeds),
            *map(plain, (track.norm, track.headline_eps, track.evaluation_examples)),
            *accuracies,
            plain(row.id),
            listed([run.run_id for run in row.runs]),
        ]
        made.append(TableRow(tuple(cells), apart=row.rank is None))
    return Table(
        tuple(columns),
        tuple(made),
        title=f"{track.track}@{track.version}, {division_title(division).lower()}: accuracy in %, "
        f"mean ± std over seeds (of one seed: over students); {track.norm} eps, * headline",
        caption=f"{_subject(track, division)}; {_sizes(rows)}. "
        f"{accuracy_note(track, f'{NORMS[track.norm]} ε')} "
        "Bold: at the headline ε the methods of rank 1, elsewhere the highest mean, untested. "
        f"{_place_note(rows)} {UNRANKED}",
        label=_label(track, division),
        notes=(_suite(track), RULE, *row_notes(rows)),
    )


def _weight(row: RowContent) -> TableCell:
    """What is stored of a set: in full for programs, in round numbers for readers."""
    size = row.stored_bytes
    return plain(None) if size is None else TableCell(size_text(size), {"": size})


def _score_table(track: TrackContent, division: str, rows: Sequence[RowContent]) -> Table:
    headings = {
        "drop_rate": "DR",
        "robustness_ratio": "RR",
        "improved_robustness_ratio": "I-RR",
        "gain_clean": "gain",
        "gain_headline": "gain",
    }
    columns = [
        *_place_columns(),
        Column("clean", "clean"),
        Column("headline", "headline"),
        *(
            Column(key, heading, headline=key == "gain_headline")
            for key, heading in headings.items()
        ),
        Column("row", None),
    ]
    made = []
    for row in rows:
        scores = row.scores.model_dump()
        cells = [
            *_place_cells(track, division, row),
            percent(row.clean.mean),
            percent(row.headline.mean),
            *(percent(scores[key], signed=key.startswith("gain")) for key in headings),
            plain(row.id),
        ]
        made.append(TableRow(tuple(cells), apart=row.rank is None))
    what = (
        "scores of the field in %, which never rank; gain: points over random selection, clean and "
        f"* at the headline eps {eps_label(track.headline_eps)}"
    )
    return Table(
        tuple(columns),
        tuple(made),
        title=f"{track.track}@{track.version}, {division_title(division).lower()}: {what}",
        caption=f"{_subject(track, division)}: {what}. DR: drop rate; RR and I-RR: robustness "
        f"ratio and improved robustness ratio. {_place_note(rows)}",
        label=f"{_label(track, division)}-scores",
        notes=(RULE,),
    )


def _suite(track: TrackContent) -> str:
    """The suite, in a sentence of its own."""
    note = suite_note(track.attacks, track.headline_eps)
    return f"{track.track}@{track.version}: {note}."


def row_notes(rows: Sequence[RowContent]) -> tuple[str, ...]:
    """Which rows are mosaics, which were made again and how far that led from them; which seeds are
    not counted.
    """
    mosaics = [
        f"{row.name} trains on {row.training_images} images from {row.images} stored ones"
        for row in rows
        if row.training_images is not None
    ]
    confirmed = [f"{row.name} {row.confirmed}" for row in rows if row.confirmed is not None]
    others = [
        f"{row.name} {', '.join(str(run.seed) for run in row.other_runs)}"
        for row in rows
        if row.other_runs
    ]
    notes = [f"Mosaics: {'; '.join(mosaics)}."] if mosaics else []
    notes += [f"Made again: {'; '.join(confirmed)}."] if confirmed else []
    notes += [f"Seeds that are not ranked and not counted: {'; '.join(others)}."] if others else []
    return tuple(notes)


def _place_note(rows: Sequence[RowContent]) -> str:
    """How the ranks of a table were made, and what they rest on."""
    ranked = sum(row.rank is not None for row in rows)
    return f"{DAGGER} {RULE.removesuffix('.')}; here {pairs_note(ranked)}."


def _subject(track: TrackContent, division: str) -> str:
    return f"{track.track}@{track.version} ({track.summary}), {division_title(division).lower()}"


def _sizes(rows: Sequence[RowContent]) -> str:
    """How many images and seeds the ranked rows have."""
    ranked = [row for row in rows if row.rank is not None] or rows
    images = {row.images for row in ranked}
    seeds = {len(row.seeds) for row in ranked}
    return f"{_range(images)} images a set, {_range(seeds)} distillation seeds"


def _range(values: Collection[int]) -> str:
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def _label(track: TrackContent, division: str) -> str:
    if division == PLAIN:
        return track.track
    return f"{track.track}-{re.sub('[^a-z]+', '-', division)}"


def _place_columns() -> list[Column]:
    return [
        Column("track", None),
        Column("version", None),
        Column("division", None),
        Column("rank", "rank"),
        Column("tied", None),
        Column("method", "method", number=False),
        Column("reference", None),
    ]


def _place_cells(track: TrackContent, division: str, row: RowContent) -> list[TableCell]:
    """What a row is and where it stands, under `_place_columns`."""
    name = row.name
    if row.rank is None:
        name += " (reference)" if row.reference else " (not ranked)"
    rank = plain(row.rank)
    return [
        *map(plain, (track.track, track.version, division)),
        TableCell(rank.text, rank.raw, tied=row.tied),
        plain(row.tied),
        TableCell(name, {"": row.method}),
        plain(row.reference),
    ]


def _accuracy_columns(ladder: Sequence[float], headline: float, norm: str) -> list[Column]:
    """Clean, then each eps of the ladder."""
    group = f"robust accuracy, {NORMS[norm]}, at ε"
    return [
        Column("clean", "clean"),
        *(
            Column(eps_key(eps), eps_label(eps), headline=eps == headline, group=group)
            for eps in ladder
        ),
    ]


def eps_key(eps: float) -> str:
    """A name that reads back as exactly this eps: "eps_8/255", "eps_0.10"."""
    label = eps_label(eps)
    return f"eps_{label if parse_eps(label) == eps else repr(eps)}"


def _levels(row: RowContent) -> list[SpreadContent]:
    return [row.clean, *row.robust]


def _highest(rows: Sequence[RowContent], index: int) -> Callable[[RowContent], bool]:
    """Whether a ranked row has the highest mean of a column, as far as it is printed."""
    means = [_levels(row)[index].mean for row in rows if row.rank is not None]
    most = percent(max(means, default=None)).text
    return lambda row: row.rank is not None and percent(_levels(row)[index].mean).text == most


def _spread(value: SpreadContent, best: bool) -> TableCell:
    fields = ("mean", "std_seeds", "std_students", "low", "high")
    return TableCell(
        with_deviation(value.mean, deviation(value)),
        {name: getattr(value, name) for name in fields},
        best=best,
    )


def run_table(record: Record) -> Table:
    """One run as a table of one row; a run with a failed check is marked.

    Raises:
        ValueError: the run failed, so there is nothing to show.
    """
    if record.aggregates is None or record.distilled is None:
        raise ValueError(f"run {record.run_id} has no results")
    track = record.track
    flagged = not all(flag.passed for flag in record.flags)
    marks = [
        (record.method.reference, "reference"),
        (flagged, "flagged"),
        (record.split == "validation", "validation"),
    ]
    name = " ".join([record.method.name, *(f"({mark})" for holds, mark in marks if holds)])
    results = [record.aggregates.clean, *(item.accuracy for item in record.aggregates.robust)]
    cells = [
        *map(plain, (track.name, track.version, record.seed, record.split)),
        TableCell(name, {"": record.method.name}),
        *map(plain, (record.method.reference, flagged)),
        plain(record.distilled.images),
        *map(plain, (track.threat.norm, track.threat.headline)),
        *(
            TableCell(
                with_deviation(item.mean, item.std),
                {name: getattr(item, name) for name in ("mean", "std", "low", "high")},
            )
            for item in results
        ),
        plain(record.run_id),
    ]
    columns = [
        *(Column(key, None) for key in ("track", "version", "seed", "split")),
        Column("method", "method", number=False),
        Column("reference", None),
        Column("flagged", None),
        Column("images", "images"),
        Column("norm", None),
        Column("headline_eps", None),
        *_accuracy_columns(track.threat.ladder, track.threat.headline, track.threat.norm),
        Column("run_id", None),
    ]
    split = "" if record.split == "test" else ", validation split"
    return Table(
        tuple(columns),
        (TableRow(tuple(cells), apart=record.method.reference),),
        title=f"{track.id}, seed {record.seed}{split}: accuracy in %, mean ± std over "
        f"{track.students.count} students; {track.threat.norm} eps, * headline",
        label=record.run_id,
    )

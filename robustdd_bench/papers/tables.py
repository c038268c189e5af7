"""Tables of any runs: one a track, or one of several tracks side by side as papers have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from robustdd_bench.board.pairing import by_seed, paired_outcomes
from robustdd_bench.board.standings import Spread
from robustdd_bench.board.views.captions import deviation
from robustdd_bench.board.views.tables import NORMS, eps_key
from robustdd_bench.evaluation.statistics.comparison import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    accuracy_intervals,
)
from robustdd_bench.papers.selection import Panel, PanelLine
from robustdd_bench.protocol.suite import suite_note
from robustdd_bench.protocol.tracks import eps_label
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

Spreads = Literal["std", "interval", "none"]
"""What stands beside a mean."""


def panel_tables(panels: Sequence[Panel], spread: Spreads, *, short: bool = False) -> list[Table]:
    """A table for each panel.

    Args:
        panels: the runs, grouped.
        spread: what stands beside a mean.
        short: whether captions hold no more than what the figures are.
    """
    return [_panel_table(panel, spread, short) for panel in panels]


def joint_table(panels: Sequence[Panel], spread: Spreads, *, short: bool = False) -> Table:
    """All panels in one table: a row for each entry's name, the levels of a track side by side.

    Args:
        panels: the runs, grouped; at least one.
        spread: what stands beside a mean.
        short: whether the caption holds no more than what the figures are.
    """
    if len(panels) == 1:
        return _panel_table(panels[0], spread, short)
    names = dict.fromkeys(entry.name for panel in panels for entry in panel.entries)
    apart = {entry.name for panel in panels for entry in panel.entries if entry.standing.reference}
    cells = [_cells(panel, spread) for panel in panels]
    rows = []
    for name in [*(n for n in names if n not in apart), *(n for n in names if n in apart)]:
        row = [TableCell(name, {"": name})]
        for panel, found in zip(panels, cells, strict=True):
            row += found.get(name, [plain(None) for _ in panel.levels])
        rows.append(TableRow(tuple(row), apart=name in apart))
    columns = [Column("method", "method", number=False)]
    tracks = [panel.track.name for panel in panels]
    for panel in panels:
        # Of two versions of a track, and of two splits, the whole title tells them apart.
        place = panel.track.name if tracks.count(panel.track.name) == 1 else panel.title
        columns += [
            Column(
                f"{place} {_key(level)}",
                f"{place}: {_heading(level)}",
                headline=level == panel.track.threat.headline,
                group=f"{panel.title}, {NORMS[panel.track.threat.norm]}",
                short=_heading(level),
            )
            for level in panel.levels
        ]
    said = [_subject(panel, short) for panel in panels]
    return Table(
        tuple(columns),
        tuple(rows),
        title=f"accuracy in %, {_spread_words(panels, spread)}; * headline",
        caption=f"{'; '.join(said)}. {_what(panels, spread)} {_best_words()}",
        label="-".join(dict.fromkeys(tracks))[:60],
        notes=() if short else tuple(_suite(panel) for panel in panels),
    )


def _panel_table(panel: Panel, spread: Spreads, short: bool) -> Table:
    track = panel.track
    group = f"robust accuracy, {NORMS[track.threat.norm]}, at ε"
    columns = [
        *(Column(key, None) for key in ("track", "version", "split")),
        Column("method", "method", number=False),
        Column("reference", None),
        Column("images", "images", minor=True),
        Column("seeds", "seeds", minor=True),
        Column("norm", None),
        Column("headline_eps", None),
        Column("examples", None),
        *(
            Column(
                _key(level),
                _heading(level),
                headline=level == track.threat.headline,
                group=group if level else "",
            )
            for level in panel.levels
        ),
        Column("settings", None),
        Column("run_ids", None),
    ]
    rows = []
    accuracies = _cells(panel, spread)
    for entry in panel.entries:
        records = entry.standing.records
        first = records[0].distilled
        config = records[0].method.config
        cells = [
            *map(plain, (track.name, track.version, panel.split)),
            TableCell(entry.name, {"": entry.standing.method}),
            plain(entry.standing.reference),
            plain(first.images if first else None),
            listed(entry.seeds),
            *map(plain, (track.threat.norm, track.threat.headline, panel.examples)),
            *accuracies[entry.name],
            listed([f"{key}={value}" for key, value in config.items()]),
            listed([record.run_id for record in records]),
        ]
        rows.append(TableRow(tuple(cells), apart=entry.standing.reference))
    return Table(
        tuple(columns),
        tuple(rows),
        title=f"{panel.title}: accuracy in %, {_spread_words([panel], spread)}; "
        f"{track.threat.norm} eps, * headline",
        caption=f"{_subject(panel, short)}. {_what([panel], spread)} {_best_words()}",
        label=track.name,
        notes=() if short else (_suite(panel),),
    )


def _cells(panel: Panel, spread: Spreads) -> dict[str, list[TableCell]]:
    """The accuracies of each entry by its name, with what machines read of each."""
    spreads = {entry.name: panel.spreads(entry) for entry in panel.entries}
    able = [spreads[entry.name] for entry in panel.entries if not entry.standing.reference]
    # As far as it is printed; alone nothing is best.
    highest = [
        max((percent(value.mean).text for value in column), key=float) if len(able) > 1 else None
        for column in zip(*able, strict=True)
    ] or [None] * len(panel.levels)
    found = {}
    for entry in panel.entries:
        intervals = intervals_of(panel, entry) if spread == "interval" else [None] * len(highest)
        found[entry.name] = [
            _cell(
                value,
                interval,
                spread,
                not entry.standing.reference and percent(value.mean).text == most,
            )
            for value, interval, most in zip(spreads[entry.name], intervals, highest, strict=True)
        ]
    return found


def _cell(value: Spread, interval: Interval | None, spread: Spreads, best: bool) -> TableCell:
    raw: dict[str, float | None] = {
        name: fact for name, fact in asdict(value).items() if name not in ("low", "high")
    }
    if interval is None:
        raw |= {"wilson_low": value.low, "wilson_high": value.high}
        text = with_deviation(value.mean, deviation(value) if spread == "std" else None)
    else:
        raw |= {"low": interval.low, "high": interval.high}
        text = f"{100 * value.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return TableCell(text, raw, best=best)


def intervals_of(panel: Panel, entry: PanelLine) -> list[Interval]:
    """The bootstrap interval of an entry's accuracy at each level of its panel."""
    seeds = tuple(sorted(by_seed(entry.standing)))
    return accuracy_intervals(paired_outcomes(entry.standing, seeds, panel.levels))


def _key(level: float) -> str:
    return eps_key(level) if level else "clean"


def _heading(level: float) -> str:
    return eps_label(level) if level else "clean"


def _subject(panel: Panel, short: bool) -> str:
    return panel.title if short else f"{panel.title} ({panel.track.summary}); {_suite(panel)}"


def _suite(panel: Panel) -> str:
    said = f"{panel.title}: {panel.examples} images"
    if panel.levels == (0.0,):  # no robust accuracy is shown
        return said
    return f"{said}, {suite_note(panel.track.attacks, panel.track.threat.headline)}"


def _what(panels: Sequence[Panel], spread: Spreads) -> str:
    seeds = sorted({len(entry.seeds) for panel in panels for entry in panel.entries})
    counted = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "seed" if seeds == [1] else "seeds"
    return (
        f"Accuracy in %, {_spread_words(panels, spread)}; {counted} distillation {plural}; "
        "* headline."
    )


def _spread_words(panels: Sequence[Panel], spread: Spreads) -> str:
    if spread == "none":
        return "mean over seeds and students"
    if spread == "interval":
        return (
            f"mean and {100 * CONFIDENCE:.0f} % bootstrap interval over seeds, students and "
            f"examples ({RESAMPLES} resamples)"
        )
    lone = [len(entry.seeds) == 1 for panel in panels for entry in panel.entries]
    if all(lone):
        return "mean ± standard deviation over students"
    words = "mean ± standard deviation over distillation seeds"
    return f"{words} (of one seed: over students)" if any(lone) else words


def _best_words() -> str:
    return "Bold: the highest mean, untested."

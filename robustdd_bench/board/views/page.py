"""The page: leaderboard/index.html, one file that needs nothing but a browser.

It is a function of the board's content and of the previews beside it. It is readable without
JavaScript; the script sorts, filters, opens what a link names and copies commands. A policy in the
page lets nothing run but that script and that stylesheet (their hashes), and all text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from robustdd_bench import __version__
from robustdd_bench.board.divisions import division_title, in_order, remark
from robustdd_bench.board.naming import shortened
from robustdd_bench.board.schema import BoardContent, RowContent, SpreadContent, TrackContent
from robustdd_bench.board.views import plots
from robustdd_bench.board.views.captions import (
    RANK_RULE,
    UNCORRECTED,
    deviation,
    pairs_note,
    recipe,
)
from robustdd_bench.board.views.run_page import place_of
from robustdd_bench.board.views.sets import pictures_of
from robustdd_bench.drawing.rendering import (
    TEMPLATES,
    Trusted,
    content_hash,
    environment,
)
from robustdd_bench.protocol.suite import suite_note, worst_case_over
from robustdd_bench.text.terminal import size_text

PAGE_NAME = "index.html"
OWN_TEMPLATES = Path(__file__).with_name("templates")


def page(content: BoardContent, root: Path) -> str:
    """The page's text.

    Args:
        content: the board.
        root: its folder, where the previews are.
    """
    templates = environment(OWN_TEMPLATES)
    templates.filters.update(
        shortened=shortened,
        points=lambda value: "–" if value is None else f"{100 * value:+.1f}",
        spread=_spread,
        division=division_title,
        remark=remark,
        names=_names,
        recipe=recipe,
        run_page=place_of,
        size=lambda count: "–" if count is None else size_text(count),
    )
    pictures, rules = pictures_of(content, root)
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8") + rules
    script = (OWN_TEMPLATES / "page.js").read_text(encoding="utf-8")
    look = plots.looks(content.tracks)
    rows = [row for track in content.tracks for row in track.rows]
    days = [run.finished for row in rows for run in (*row.runs, *row.other_runs)]
    return templates.get_template("page.html.j2").render(
        board=content,
        style=Trusted(style),
        script=Trusted(script),
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        pictures=pictures,
        scatter={track.track: plots.scatter(track, look) for track in content.tracks},
        curves={track.track: plots.curves(track, look) for track in content.tracks},
        suite=lambda track: suite_note(track.attacks, track.headline_eps).replace(" eps", " ε"),
        worst_case=lambda track: worst_case_over(track.attacks, track.headline_eps).replace(
            " eps", " ε"
        ),
        pairs=lambda rows: pairs_note(len(rows)),
        rules=(RANK_RULE.replace(" eps", " ε"), UNCORRECTED.replace(" eps", " ε")),
        leaders={track.track: leaders(track) for track in content.tracks},
        harness=__version__,
        newest=max(filter(None, days), default=None),
        divisions=divisions,
        filters=_filters(content.tracks),
    )


MOST_LEADERS = 3
"""Of a division, in the overview."""


def leaders(track: TrackContent) -> list[RowContent]:
    """The rows of rank 1, of each division: the first of them, where many are level."""
    found = []
    for name in in_order(row.division for row in track.rows):
        first = [row for row in track.rows if row.division == name and row.rank == 1]
        found += first[:MOST_LEADERS]
    return found


def divisions(track: TrackContent) -> list[tuple[str, list[RowContent], list[RowContent]]]:
    """Name, ranked rows and those without a rank, of each division."""
    return [
        (
            name,
            [r for r in track.rows if r.division == name and r.rank is not None],
            [r for r in track.rows if r.division == name and r.rank is None],
        )
        for name in in_order(row.division for row in track.rows)
    ]


def _filters(tracks: Iterable[TrackContent]) -> Mapping[str, list[tuple[str, str]]]:
    """What can be chosen, by property: value and text; properties with one value are left out."""
    tracks = list(tracks)
    training = {
        "natural": "naturally",
        "pgd": "by PGD-AT",
        "trades": "by TRADES",
        "teacher": "on labels by a teacher",
    }
    found = {
        "dataset": [(name, name) for name in sorted({track.dataset for track in tracks})],
        "ipc": [(str(n), str(n)) for n in sorted({track.ipc for track in tracks})],
        "students": [(name, name) for name in sorted({track.student_network for track in tracks})],
        "training": [
            (key, text)
            for key, text in training.items()
            if any(track.training == key for track in tracks)
        ],
        "division": [
            (name, division_title(name))
            for name in in_order(row.division for track in tracks for row in track.rows)
        ],
    }
    return {name: values for name, values in found.items() if len(values) > 1}


def _spread(value: SpreadContent) -> str:
    std = deviation(value)
    return "" if std is None else f"± {100 * std:.1f}"


def _names(ids: Iterable[str], track: TrackContent) -> str:
    """Methods of the rows with these ids, which are of one track."""
    methods = {row.id: row.name for row in track.rows}
    return ", ".join(methods.get(name, name) for name in ids)

"""A page a run: leaderboard/runs/<run id>.html, so that a single run can be linked and cited.

It is a function of the board's content, needs no script, and loads nothing but the run's picture.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from robustdd_bench.board.divisions import remark
from robustdd_bench.board.schema import BoardContent, RowContent, RunContent, TrackContent
from robustdd_bench.board.views.captions import recipe
from robustdd_bench.drawing.rendering import TEMPLATES, Trusted, content_hash, environment
from robustdd_bench.protocol.suite import suite_note
from robustdd_bench.text.latex import escape

FOLDER = "runs"
OWN_TEMPLATES = Path(__file__).with_name("templates")


def place_of(run: RunContent) -> str:
    """The page of a run, below the board's folder."""
    return f"{FOLDER}/{run.run_id}.html"


def run_pages(content: BoardContent) -> dict[str, str]:
    """The text of every run's page, by its place below the board's folder."""
    template = _template()
    style = (TEMPLATES / "run.css").read_text(encoding="utf-8")
    return {
        place_of(run): template.render(
            track=track,
            row=row,
            run=run,
            marks=content.marks,
            counted=run in row.runs,
            bibtex=bibtex(track, row, run),
            suite=suite_note(track.attacks, track.headline_eps).replace(" eps", " ε"),
            style=Trusted(style),
            style_hash=content_hash(style),
        )
        for track, row, run in _runs(content)
    }


def _runs(content: BoardContent) -> Iterator[tuple[TrackContent, RowContent, RunContent]]:
    for track in content.tracks:
        for row in track.rows:
            for run in (*row.runs, *row.other_runs):
                yield track, row, run


def bibtex(track: TrackContent, row: RowContent, run: RunContent) -> str:
    """What to cite for a run."""
    author = run.submission.by if run.submission is not None and run.submission.by else ""
    fields = {
        "author": f"{{{escape(author)}}}" if author else "{The robustdd-bench authors}",
        "title": escape(f"{row.method} on {track.track}@{track.version}, seed {run.seed}"),
        "howpublished": escape(f"robustdd-bench, run {run.run_id}"),
        "year": (run.finished or "")[:4],
        "note": escape(f"results sha256 {run.results_sha256[:16]}"),
    }
    width = max(map(len, fields))
    lines = [f"  {name:<{width}} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{robustdd-{run.run_id},", *lines, "}"]) + "\n"


@functools.cache
def _template():  # type: ignore[no-untyped-def]  # jinja2 is imported late
    templates = environment(OWN_TEMPLATES)
    templates.filters.update(remark=remark, recipe=recipe)
    return templates.get_template("run.html.j2")

"""`robustdd publish` and `robustdd board`: runs that others may see, and their tables."""

from __future__ import annotations

from pathlib import Path

import click

from robustdd_bench.cli.group import Group
from robustdd_bench.cli.output import json_option, print_json, print_table
from robustdd_bench.cli.session import Session, pass_session
from robustdd_bench.errors import UsageError, unknown_name

board_option = click.option(
    "--board",
    "root",
    type=click.Path(path_type=Path),
    default=Path("leaderboard"),
    show_default=True,
    metavar="DIR",
    help="Folder of the board.",
)


@click.command("publish")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@board_option
@click.option("--by", metavar="NAME", help="Who ran it.")
@click.option("--link", metavar="URL", help="Where its code or sets are, an https address.")
@click.option("--paper", metavar="URL", help="The paper of the method, an https address.")
@click.option("--licence", metavar="SPDX", help='Licence of the distilled set, e.g. "CC-BY-4.0".')
@pass_session
def publish_command(session: Session, folder: Path, root: Path, **people: str | None) -> None:
    """Copy a run to the board and rebuild it.

    RUN is the folder of a run. A validation run, a failed one, one with a failed sanity check or
    one on a track that is not installed is refused, with every reason at once; the board is then
    as it was. Publishing a run again changes nothing but what --by, --link, --paper and --licence
    say.
    """
    from robustdd_bench.board.build import publish_and_build
    from robustdd_bench.board.submission import make_submission

    submission = make_submission(**people)
    done = publish_and_build(folder, root, session.registry, submission)
    print(done.folder)


@click.group("board", cls=Group)
def board() -> None:
    """Build, check, show and compare published runs."""


@board.command("build")
@board_option
@pass_session
def board_build(session: Session, root: Path) -> None:
    """Write leaderboard.json and the page index.html from the published records."""
    from robustdd_bench.board.build import BOARD_NAME, build
    from robustdd_bench.board.page import PAGE_NAME

    build(root, session.registry)
    for name in (BOARD_NAME, PAGE_NAME):
        print(root / name)


@board.command("validate")
@board_option
@json_option
@pass_session
def board_validate(session: Session, root: Path, as_json: bool) -> None:
    """Check every published record, set, preview and place."""
    from robustdd_bench.board.publish import published

    found = published(root, session.registry)
    if as_json:
        print_json([run.folder.relative_to(root).as_posix() for run in found])
    else:
        print(f"{len(found)} published runs are valid")


@board.command("show")
@click.argument("track", required=False)
@board_option
@click.option("--scores", is_flag=True, help="Show the field's scores (DR, RR, I-RR, gain).")
@json_option
def board_show(track: str | None, root: Path, scores: bool, as_json: bool) -> None:
    """Show the board of one track, or of all.

    A table a kind of labels. Methods share the rank of the one that leads their group if the
    interval of their paired difference to it at the headline eps contains 0. The field's scores
    never rank.
    """
    from robustdd_bench.board.build import board as build_board
    from robustdd_bench.board.publish import current, published
    from robustdd_bench.board.ranking import divisions
    from robustdd_bench.board.standings import caption, headings
    from robustdd_bench.board.tables import SCORE_COLUMNS, division_title, score_cells
    from robustdd_bench.protocol.tracks import eps_label

    runs = published(root)
    names = sorted({run.record.track.name for run in runs})
    if not names:
        raise UsageError(f"nothing is published under {root}; see `robustdd publish`")
    if track is not None and track not in names:
        raise unknown_name("track on this board", track, names)
    chosen = names if track is None else [track]
    if as_json:
        content = build_board(runs, root).model_dump(mode="json")
        content["tracks"] = [item for item in content["tracks"] if item["track"] in chosen]
        print_json(content)
        return
    for name in chosen:
        records = current(runs, name)
        first = records[0].track
        for division in divisions(records):
            title = f"{first.id}, {division_title(division.name).lower()}: "
            if scores:
                columns = list(SCORE_COLUMNS)
                rows = [score_cells(row) for row in division.rows]
                title += (
                    "scores of the field in %, which never rank; gain: points over random "
                    f"selection, clean and * at the headline eps {eps_label(first.threat.headline)}"
                )
            else:
                columns = ["rank", *headings(first)]
                rows = [row.cells() for row in division.rows]
                title += caption(first)
            print_table(columns, rows, title=title, right=[columns[0], *columns[2:]])


@board.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--track", metavar="TRACK", help="The track, if both are on several.")
@board_option
@json_option
def board_compare(a: str, b: str, track: str | None, root: Path, as_json: bool) -> None:
    """Compare two published methods on the same examples, seeds and students.

    A and B are names of methods or ids of published runs; an id stands for its method's runs with
    the same settings. For clean accuracy and each eps: the mean paired difference, its bootstrap
    interval over seeds, students and examples, and McNemar's test of the networks on the examples.
    """
    from robustdd_bench.board.compare import choose, compare_standings
    from robustdd_bench.board.publish import published

    runs = published(root)
    if not runs:
        raise UsageError(f"nothing is published under {root}; see `robustdd publish`")
    found = compare_standings(*choose(runs, a, b, track))
    if as_json:
        print_json(found.content())
    else:
        columns = found.headings()
        print_table(columns, found.rows(), title=found.title(), right=columns[1:])

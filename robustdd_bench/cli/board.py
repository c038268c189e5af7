"""`robustdd publish` and `robustdd board`: runs that others may see, and their tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustdd_bench.cli.shared.arguments import data_root_option
from robustdd_bench.cli.shared.group import Group
from robustdd_bench.cli.shared.output import format_option, print_json, print_tables
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.filenames import RECORD_FILE

if TYPE_CHECKING:
    from robustdd_bench.board.admission.overlaps import DataAtHand

FORMATS = ("table", "json", "csv", "md", "latex")

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
@click.option("--name", metavar="NAME", help="What a set made elsewhere is called on the board.")
@data_root_option
@pass_session
def publish_command(
    session: Session, folder: Path, root: Path, data_root: Path, **people: str | None
) -> None:
    """Copy a run to the board and rebuild it.

    RUN is the folder of a run. A validation run, a failed one, one with a failed sanity check or
    one on a track that is not installed is refused, with every reason at once; the board is then
    as it was. So is a set that holds copies of test images; it is compared with the dataset where
    that is under --data-root. Publishing a run again changes nothing but what --by, --link,
    --paper, --licence and --name say.

    A set made elsewhere, which `robustdd evaluate SET --format ...` judged, has a division of its
    own. It needs --name, --licence, and --paper or --link.

    A run that measures what a published one measures (the same method and settings, track, seed)
    with another torch, version, device or machine is kept below that one as its confirmation. It is
    shown on the board, and is no further seed and no row.
    """
    from robustdd_bench.board.admission.overlaps import DataAtHand
    from robustdd_bench.board.admission.submission import make_submission
    from robustdd_bench.board.build import publish_and_build
    from robustdd_bench.board.confirmations import deviation, run_of
    from robustdd_bench.records.record import read_record

    submission = make_submission(**people)
    data = DataAtHand(session.registry, data_root)
    done = publish_and_build(folder, root, session.registry, submission, data)
    _say_notes(data)
    print(done.folder)
    first = run_of(done.folder)
    if first is not None:
        run = read_record(first / RECORD_FILE)
        found = deviation(run, done.record)
        print(f"it confirms run {run.run_id}: {found}", file=sys.stderr)


def _say_notes(data: DataAtHand) -> None:
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)


@click.group("board", cls=Group)
def board() -> None:
    """Build, check, show and compare published runs."""


@board.command("build")
@board_option
@pass_session
def board_build(session: Session, root: Path) -> None:
    """Write leaderboard.json and the page index.html from the published records."""
    from robustdd_bench.board.build import BOARD_NAME, build
    from robustdd_bench.board.views.page import PAGE_NAME

    build(root, session.registry)
    for name in (BOARD_NAME, PAGE_NAME):
        print(root / name)


@board.command("validate")
@board_option
@data_root_option
@format_option("table", "json", "csv", "md")
@click.pass_context
@pass_session
def board_validate(
    session: Session, ctx: click.Context, root: Path, data_root: Path, form: str
) -> None:
    """Check a board as it lies there: every run, what is said beside it, and what was built.

    Every published record, set, preview, place and submission; the files of reported figures; and
    that leaderboard.json and the page index.html are those that the records give. Sets are compared
    with the images of their dataset where that is under --data-root. All problems are
    named; the exit code is 1 if there is one.
    """
    from robustdd_bench.board.admission.overlaps import DataAtHand
    from robustdd_bench.board.validate import validate

    data = DataAtHand(session.registry, data_root)
    found = validate(root, session.registry, data)
    _say_notes(data)
    if form == "json":
        print_json(found.content())
    elif form == "table" and not found.problems:
        print(found.title())
    else:
        print_tables([found.table()], form)
    if found.problems:
        ctx.exit(1)


@board.command("show")
@click.argument("track", required=False)
@board_option
@click.option("--scores", is_flag=True, help="Show the field's scores (DR, RR, I-RR, gain).")
@format_option(*FORMATS)
def board_show(track: str | None, root: Path, scores: bool, form: str) -> None:
    """Show the board of one track, or of all.

    A table a division: hard and soft labels, and in each the sets with a preprocessing of their own
    and those that were imported. A row's rank is 1 plus the number of rows whose paired difference
    to it at the headline eps has an interval above 0; fewer than three common seeds separate
    nothing. The field's scores never rank.

    csv is one table of all tracks with everything a row has in numbers: accuracies in [0,1], both
    deviations, intervals, run ids. latex is for a paper, with the package booktabs: the best of a
    column is bold, rows that are not separated from another are marked, and the caption says
    what is what. json is what leaderboard.json holds of these tracks.
    """
    from robustdd_bench.board.build import board as build_board
    from robustdd_bench.board.publish import published
    from robustdd_bench.board.views.tables import board_tables, score_tables

    runs = published(root)
    names = sorted({run.record.track.name for run in runs})
    if not names:
        raise UsageError(f"nothing is published under {root}; see `robustdd publish`")
    if track is not None and track not in names:
        raise unknown_name("track on this board", track, names)
    chosen = [run for run in runs if track in (None, run.record.track.name)]
    content = build_board(chosen, root)
    if form == "json":
        print_json(content.model_dump(mode="json"))
        return
    make = score_tables if scores else board_tables
    print_tables([table for item in content.tracks for table in make(item).values()], form)


@board.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--track", metavar="TRACK", help="The track, if both are on several.")
@board_option
@format_option(*FORMATS)
def board_compare(a: str, b: str, track: str | None, root: Path, form: str) -> None:
    """Compare two published methods on the same examples, seeds and students.

    A and B are names of methods or ids of published runs; an id stands for its method's runs with
    the same settings. For clean accuracy and each eps: the mean paired difference, its bootstrap
    interval over seeds, students and examples, and McNemar's test of the networks on the examples.
    Intervals are not corrected for how many eps or pairs you look at.
    """
    from robustdd_bench.board.compare import choose, compare_standings
    from robustdd_bench.board.publish import published

    runs = published(root)
    if not runs:
        raise UsageError(f"nothing is published under {root}; see `robustdd publish`")
    found = compare_standings(*choose(runs, a, b, track))
    if form == "json":
        print_json(found.content())
    else:
        print_tables([found.table()], form)

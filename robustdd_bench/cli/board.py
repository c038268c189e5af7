"""`robustdd publish` and `robustdd board`: runs that others may see, and their tables."""

from __future__ import annotations

from pathlib import Path

import click

from robustdd_bench.cli.group import Group
from robustdd_bench.cli.output import json_option, print_json, print_table
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
def publish_command(folder: Path, root: Path) -> None:
    """Copy a run to the board and rebuild it.

    RUN is the folder of a run. A validation run, a failed one or one with a failed sanity check is
    refused.
    """
    from robustdd_bench.board.build import build
    from robustdd_bench.board.publish import publish

    done = publish(folder, root)
    build(root)
    print(done.folder)


@click.group("board", cls=Group)
def board() -> None:
    """Build, check and show the board of published runs."""


@board.command("build")
@board_option
def board_build(root: Path) -> None:
    """Write leaderboard.json from the published records."""
    from robustdd_bench.board.build import build

    build(root)
    print(root / "leaderboard.json")


@board.command("validate")
@board_option
@json_option
def board_validate(root: Path, as_json: bool) -> None:
    """Check every published record, set and place."""
    from robustdd_bench.board.publish import published

    found = published(root)
    if as_json:
        print_json([run.folder.relative_to(root).as_posix() for run in found])
    else:
        print(f"{len(found)} published runs are valid")


@board.command("show")
@click.argument("track", required=False)
@board_option
@json_option
def board_show(track: str | None, root: Path, as_json: bool) -> None:
    """Show the board of one track, or of all."""
    from robustdd_bench.board.build import board as build_board
    from robustdd_bench.board.publish import current, published
    from robustdd_bench.board.standings import headings, standings

    runs = published(root)
    names = sorted({run.record.track.name for run in runs})
    if not names:
        raise UsageError(f"nothing is published under {root}; see `robustdd publish`")
    if track is not None and track not in names:
        raise unknown_name("track on this board", track, names)
    chosen = names if track is None else [track]
    if as_json:
        content = build_board(runs, root)
        content["tracks"] = [item for item in content["tracks"] if item["track"] in chosen]
        print_json(content)
        return
    for name in chosen:
        rows = standings(current(runs, name))
        first = rows[0].records[0].track
        title = (
            f"{first.id}: accuracy in %, mean ± std over seeds (of one seed: over students); "
            f"{first.threat.norm} eps, * headline"
        )
        columns = headings(first)
        print_table(columns, [s.cells() for s in rows], title=title, right=columns[1:])

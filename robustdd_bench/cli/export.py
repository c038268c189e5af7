"""`robustdd export`: a distilled set in the layout of another code, with a card."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from robustdd_bench.cli.shared.arguments import OneOf
from robustdd_bench.cli.shared.output import announce, json_option, one_line, print_json
from robustdd_bench.cli.shared.session import Session, pass_session

# Those of robustdd_bench.exports.layouts, which imports torch.
LAYOUTS = ("dc", "mtt", "tensors", "npz", "imagefolder")


@click.command("export")
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|SET")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="A new folder.",
)
@click.option(
    "--as",
    "layout",
    type=OneOf("layout", LAYOUTS),
    default="tensors",
    show_default=True,
    metavar=f"[{'|'.join(LAYOUTS)}]",
    help="The layout of its files.",
)
@click.option(
    "--space",
    type=OneOf("space", ("raw", "normalised")),
    metavar="[raw|normalised]",
    help="That of the images; by default normalised for dc and mtt, and raw pixels elsewhere.",
)
@click.option(
    "--statistics",
    metavar="NAME",
    help="What they are normalised with; by default what the DC and MTT codes take for the "
    "dataset. docs/importing.md lists the names.",
)
@click.option("--force", is_flag=True, help="Write into a folder that has files.")
@json_option
@pass_session
def export_command(
    session: Session,
    source: Path,
    target: Path,
    layout: str,
    space: str | None,
    statistics: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a distilled set for other codes, with a card, its record and what to cite.

    RUN is the folder of a run, published or not; SET a file such as distilled.safetensors. What a
    layout does not hold is told, and stands in the card. `robustdd evaluate DIR --format` reads all
    of them again.
    """
    announce(f"{source} to {target}")
    from robustdd_bench.exports.write import export
    from robustdd_bench.papers.pictures import read_set

    distilled, record = read_set(source)
    done = export(
        distilled,
        record,
        source,
        target,
        session.registry,
        layout=layout,
        space=space,
        statistics=statistics,
        force=force,
    )
    if as_json:
        print_json({"folder": str(target), "files": done.files, "not_held": done.losses})
        return
    print(target)
    for loss in done.losses:
        print(one_line(f"note: {loss}"), file=sys.stderr)

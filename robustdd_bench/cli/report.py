"""`robustdd report`: what runs did, as a page or as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from robustdd_bench.cli.shared.arguments import OneOf
from robustdd_bench.cli.shared.output import json_option, print_json


@click.command("report")
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE|DIR",
    help="A name that ends in .html or .md, or a folder. Without it: report.html here.",
)
@click.option(
    "--format",
    "file_format",
    type=OneOf("format", ("html", "md")),
    default=None,
    help="html or md, where --out does not say it.",
)
@json_option
def report(runs: Sequence[Path], out: Path | None, file_format: str | None, as_json: bool) -> None:
    """Write a report of one or several runs: settings, tables, plots, images over iterations.

    RUN is the folder of a run, published or not. A run that failed or did not finish is shown as
    far as it came. HTML is one file that needs nothing else; Markdown has a folder of plots and
    pictures beside it.
    """
    from robustdd_bench.report.write import write_report

    written = write_report(runs, out, file_format)
    if as_json:
        print_json({"report": written[0], "files": written[1:]})
        return
    print(written[0])
    if len(written) > 1:
        print(f"{len(written) - 1} plots and pictures in {written[1].parent}", file=sys.stderr)

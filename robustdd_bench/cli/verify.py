"""`robustdd verify`: hold a record against its witnesses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from robustdd_bench.cli.arguments import OneOf, data_root_option
from robustdd_bench.cli.output import json_option, print_json, print_table
from robustdd_bench.cli.session import Session, pass_session
from robustdd_bench.errors import RunFailedError


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--witnesses",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The witnesses; by default those in the folder.",
)
@click.option(
    "--device",
    type=OneOf("device", ("auto", "cpu", "cuda")),
    default="auto",
    show_default=True,
    help="auto, cpu or cuda; auto takes the GPU where there is one.",
)
@data_root_option
@json_option
@pass_session
def verify(
    session: Session,
    /,
    folder: Path,
    witnesses: Path | None,
    device: str,
    data_root: Path,
    as_json: bool,
) -> None:
    """Hold a run's record against its witnesses.

    RUN is the folder of a run, published or not. Its students are taken from there, or trained
    again on its distilled set; then every adversarial example is checked in one forward pass. Exit
    code 1 says that the record claims what the witnesses do not prove.
    """
    from robustdd_bench.board.verify import verify_witnesses
    from robustdd_bench.protocol.tracks import eps_label
    from robustdd_bench.runs.progress import NullReporter

    verdict = verify_witnesses(
        folder,
        session.registry,
        data_root=data_root,
        reporter=NullReporter,
        witnesses=witnesses,
        device=device,
    )
    if as_json:
        print_json(dataclasses.asdict(verdict) | {"agrees": verdict.agrees})
    else:
        headings = ("eps", "claimed", "left by witnesses", "unproven")
        rows = [
            (
                eps_label(level.eps) if level.eps else "clean",
                f"{100 * level.claimed:.2f}",
                f"{100 * level.left:.2f}",
                level.unproven,
            )
            for level in verdict.levels
        ]
        title = f"{folder}: accuracy in %, {verdict.witnesses} witnesses"
        print_table(headings, rows, title=title, right=headings[1:])
    if not verdict.same_weights:
        print(
            "the students trained here are not the record's to the bit (another machine or torch)",
            file=sys.stderr,
        )
    if not verdict.agrees:
        raise RunFailedError("the record claims more or less than its witnesses prove")
    print("the record agrees with its witnesses", file=sys.stderr)

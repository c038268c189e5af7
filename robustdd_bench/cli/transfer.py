"""`robustdd transfer`: examples made on the students of each run, judged on those of every run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from robustdd_bench.cli.shared.arguments import (
    OneOf,
    RegisteredName,
    data_root_option,
    eps_value,
    must_exist,
)
from robustdd_bench.cli.shared.execution import device_option
from robustdd_bench.cli.shared.output import (
    announce,
    json_option,
    one_line,
    print_json,
    print_tables,
)
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.config import parse_assignments

DEFAULT_OUT = Path("transfer")


def _eps(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    return None if value is None else eps_value(value, "--eps")


@click.command("transfer")
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--attack",
    type=RegisteredName("attacks"),
    default="pgd",
    show_default=True,
    metavar="NAME",
    help="What makes the examples: with the settings of the first run's suite if it is there, else "
    "its defaults.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an option of the attack; repeatable.",
)
@click.option(
    "--eps",
    callback=_eps,
    metavar="E",
    help="As .1 or 8/255, in the norm of the runs; by default the headline eps of their tracks.",
)
@click.option(
    "--examples",
    type=int,
    metavar="N",
    help="Only the first N images of the split; all by default.",
)
@click.option(
    "--sources",
    type=OneOf("sources", ("all", "first")),
    default="all",
    show_default=True,
    metavar="[all|first]",
    help="Make examples on all students of a run, or on its first one.",
)
@device_option("auto", "auto, cpu, cuda or cuda:N; auto takes the GPU where there is one.")
@data_root_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUT,
    show_default=True,
    metavar="DIR",
    help="Folder for transfer.json, transfer.png and what is known of each pair.",
)
@json_option
@pass_session
def transfer(
    session: Session,
    /,
    runs: Sequence[Path],
    attack: str,
    assignments: Sequence[str],
    eps: float | None,
    examples: int | None,
    sources: str,
    device: str,
    data_root: Path,
    out: Path,
    as_json: bool,
) -> None:
    """Try adversarial examples made on the students of each run on those of every other run.

    RUN is the folder of a run that has its students: one made here, validated or not. A published
    run has none; `robustdd evaluate RUN --out DIR` trains them again. The runs must be judged on
    the same images. Rows of the table are what the examples were made on, columns what was judged;
    the diagonal is the white-box case. Each pair is kept, so an interrupted or extended call goes
    on where it was.

    This is not the attack `transfer`, which tries examples of the other students of one run within
    its suite.
    """
    session.registry.get("attacks", attack)
    overrides = parse_assignments(assignments)
    for run in runs:
        must_exist(run)
    announce(f"{len(runs)} runs, {attack}")
    from robustdd_bench.transfers.call import TransferOptions, matrix_of
    from robustdd_bench.transfers.show import matrix_table, write_matrix

    def note(text: str) -> None:
        print(one_line(text), file=sys.stderr, flush=True)

    options = TransferOptions(
        attack=attack,
        config=overrides,
        eps=eps,
        examples=examples,
        sources=sources,
        device=device,
        data_root=data_root,
        out=out,
        note=note,
    )
    found = matrix_of(runs, session.registry, options)
    written = write_matrix(found, out)
    if as_json:
        print_json(found.to_dict())
    else:
        print_tables([matrix_table(found)], "table")
    total = len(found.runs) ** 2
    reused = f"; {found.reused} of {total} pairs reused" if found.reused else ""
    note(f"{' and '.join(map(str, written))} written{reused}")

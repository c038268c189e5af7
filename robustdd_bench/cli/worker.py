"""`robustdd worker`: computes cells of runs that another process plans."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from robustdd_bench.cli.shared.arguments import DEFAULT_DATA_ROOT, out_option
from robustdd_bench.cli.shared.execution import device_option
from robustdd_bench.cli.shared.output import announce
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import UsageError
from robustdd_bench.records.means import DATA_VARIABLE
from robustdd_bench.text.terminal import say

MOST_S = 366 * 24 * 3600


@click.command("worker")
@out_option
@device_option("auto", "auto, cpu, cuda or cuda:N; without CUDA, cells of GPUs are left to others.")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar=DATA_VARIABLE,
    show_envvar=True,
    metavar="DIR",
    help="Folder that holds the datasets; by default that of the process that plans.",
)
@click.option(
    "--wait",
    type=float,
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="End when there was nothing to do for so long.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="METHOD[/TRACK]|RUN_ID",
    help="Take cells of these runs alone; * stands for any text; repeatable.",
)
@pass_session
def worker(
    session: Session,
    /,
    out: Path,
    device: str,
    data_root: Path | None,
    wait: float,
    only: Sequence[str],
) -> None:
    """Compute cells of runs that another process plans, on this machine or another one.

    Start as many as you like, before or after `robustdd sweep FILE --executor workers`, on every
    machine that sees the output folder: one for each GPU, or for each few cores. A worker that is
    interrupted gives its cell back; the cell of one that dies goes to another.
    """
    if not 0 <= wait <= MOST_S:
        raise UsageError(f"--wait must lie in 0..{MOST_S} seconds, not {wait:g}")
    if data_root is not None and not data_root.is_dir() and data_root != DEFAULT_DATA_ROOT:
        raise UsageError(f"no folder {data_root}; see --data-root and {DATA_VARIABLE}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is no folder; see --out")
    announce(f"cells of {out}")
    import torch

    from robustdd_bench.records.means import resolve_device
    from robustdd_bench.runs.execution.queue.taking import QueueWorker, Taste

    gpu = resolve_device(device) == "cuda"
    name = torch.cuda.get_device_name() if gpu else "CPU"
    taste = Taste(gpu=gpu, only=tuple(only), data_root=data_root, wait_s=wait)
    taker = QueueWorker(out, session.registry, taste, _say)
    _say(f"process {os.getpid()}, {name}: waiting for cells")
    why = taker.run()
    _say(f"{why}; {taker.done} cells computed")


def _say(text: str) -> None:
    say(f"worker: {text}")

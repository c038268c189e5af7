"""One call from folders of runs to a transfer matrix; the command and `rdd.transfer` make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, get_args

from robustdd_bench.errors import unknown_name
from robustdd_bench.plugins import Registry
from robustdd_bench.transfers.matrix import Sources, TransferMatrix, transfer_matrix
from robustdd_bench.transfers.sources import common_eps, configured_attack, load_runs


class TransferOptions(TypedDict, total=False):
    """How a transfer matrix is made; those of `robustdd transfer`."""

    attack: str
    """A registered attack, "pgd" by default; with the settings of the first run's suite if it is
    there, else its own defaults."""
    config: Mapping[str, Any]
    """Settings of the attack by name."""
    eps: float | None
    """In the runs' norm; by default the headline eps of their tracks."""
    examples: int | None
    """Only so many images from the start of the split; all by default."""
    sources: str
    """Which students of a run examples are made on: "all" (the default) or "first"."""
    device: str
    """"auto" (the default), "cpu", "cuda" or "cuda:1"."""
    data_root: str | Path
    """Folder of the datasets, "data" by default."""
    out: str | Path | None
    """Folder that keeps each pair for the next call; by default nothing is kept."""
    note: Callable[[str], object]
    """Told, in one line, what is being computed."""


def matrix_of(paths: Sequence[Path], known: Registry, options: TransferOptions) -> TransferMatrix:
    """The transfer matrix of the runs in these folders.

    Args:
        paths: folders of runs that have their students.
        known: what plugins register.
        options: see `TransferOptions`.

    Raises:
        UsageError: the runs do not belong together, one has no students, or an option is wrong.
        RunFailedError, PluginError: a file cannot be written, or the attack failed.
    """
    for name in options:
        if name not in TransferOptions.__annotations__:
            raise unknown_name("option", name, TransferOptions.__annotations__)
    sources: Sources | None = next(
        (word for word in get_args(Sources) if word == options.get("sources", "all")), None
    )
    if sources is None:
        raise unknown_name("sources", str(options.get("sources")), get_args(Sources))
    entry = known.get("attacks", options.get("attack", "pgd"))
    root, out = Path(options.get("data_root", "data")), options.get("out")
    runs = load_runs(paths, known, root, options.get("device", "auto"))
    return transfer_matrix(
        runs,
        entry,
        configured_attack(runs, known, entry.name, options.get("config", {})),
        eps=common_eps(runs, options.get("eps")),
        version=known.plugins[entry.plugin].version,
        examples=options.get("examples"),
        sources=sources,
        out=None if out is None else Path(out),
        note=options.get("note", lambda text: None),
    )

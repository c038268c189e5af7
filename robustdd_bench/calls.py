"""What the calls of the Python entrance have in common: their options and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from robustdd_bench.errors import unknown_name

DEFAULT_TRACK = "digits-ipc10"
OUT, DATA = "runs", "data"


class Options(TypedDict, total=False):
    """With what a run is carried out, and where its files are; those of `robustdd run`."""

    device: str
    """"auto" (the default), "cpu", "cuda" or "cuda:1"."""
    jobs: int | str
    """Cells computed at once, in processes; by default "auto": as many as cores or GPUs. Results do
    not depend on it."""
    threads: int
    """CPU threads, 1 by default; 0: torch's choice."""
    compile: str
    """Compiled kernels: "auto" (the default), "on" or "off"."""
    validate: bool
    """Judge on a split of the training data, for tuning; not by default."""
    out: str | Path
    """Folder of runs and of what they share, "runs" by default."""
    data_root: str | Path
    """Folder of the datasets, "data" by default."""
    download: bool
    """Whether a missing dataset may be downloaded; not by default."""
    witnesses: bool
    """Keep adversarial examples; not by default."""
    fresh: bool
    """Forget what this run has computed; not by default."""
    time_limit: float
    """Seconds after which nothing more is begun and what is computed is interrupted; the call then
    raises `TimeLimitError`, and the same call goes on. None by default."""
    quiet: bool
    """Show no progress; it is shown on stderr by default."""


MEANS: tuple[Literal["device", "threads", "compile"], ...] = ("device", "threads", "compile")
PLANNED = (*MEANS, "validate")


def planned(options: Options) -> dict[str, Any]:
    """Those of the options that a plan holds."""
    given = {name: value for name, value in options.items() if name in PLANNED}
    return {"compile": "auto"} | given


def check(options: Options) -> None:
    """Refuse an option that there is not.

    Raises:
        UsageError: there is one.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise unknown_name("option", name, Options.__annotations__)

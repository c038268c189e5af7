"""Which runs a script is about: those of a sweep, or one that is named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.plugins import Registry
from robustdd_bench.records.plan import make_plan
from robustdd_bench.sweeps.file import read_sweep_file
from robustdd_bench.sweeps.plan import SweepRun, plan_sweep


def add_options(made: argparse.ArgumentParser) -> None:
    """Let a parser take the choice."""
    made.add_argument("--sweep", type=Path, help="file of a sweep")
    made.add_argument("--only", action="append", default=[], help="as `robustdd sweep --only`")
    made.add_argument("--method", help="instead of a sweep: one run")
    made.add_argument("--track", default="cifar10-ipc10")
    made.add_argument("--preset", default="default")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--validate", action="store_true")


def check(made: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program unless there is one choice."""
    if (options.sweep is None) == (options.method is None):
        made.error("give either --sweep or --method")


def runs(options: argparse.Namespace, registry: Registry, device: str) -> Sequence[SweepRun]:
    """The runs that are asked for, in order.

    Raises:
        UsageError: they cannot be planned.
    """
    if options.sweep is not None:
        return plan_sweep(options.sweep, registry, device=device, only=options.only).runs
    plan = make_plan(
        registry,
        method=options.method,
        track=options.track,
        preset=options.preset,
        assignments=options.set,
        seed=options.seed,
        device=device,
        validate=options.validate,
    )
    return [SweepRun(plan, plan.run_id())]


def track_files(options: argparse.Namespace) -> dict[str, Path]:
    """Where the tracks' files are, by name: a plan knows no more than the name."""
    if options.sweep is None:
        return {Path(options.track).name: Path(options.track)}
    spec = read_sweep_file(options.sweep)
    names = [*spec.tracks, *(track for one in spec.runs for track in one.tracks or ())]
    return {Path(name).name: options.sweep.parent / name for name in names}


def words(options: argparse.Namespace) -> list[str]:
    """The choice as options again, without folders."""
    if options.sweep is not None:
        patterns = [word for pattern in options.only for word in ("--only", pattern)]
        return ["--sweep", options.sweep.name, *patterns]
    found = ["--method", options.method, "--track", Path(options.track).name]
    found += ["--preset", options.preset, "--seed", str(options.seed)]
    found += ["--validate"] if options.validate else []
    return found + [word for value in options.set for word in ("--set", value)]

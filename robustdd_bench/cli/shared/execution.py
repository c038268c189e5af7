"""Options that say where and how long cells are computed, and the executor that they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustdd_bench.cli.shared.arguments import (
    Device,
    OneOf,
    RegisteredName,
    data_root_option,
    out_option,
)
from robustdd_bench.cli.shared.session import Session
from robustdd_bench.errors import UsageError
from robustdd_bench.guard import blame
from robustdd_bench.records.means import DEVICE_VARIABLE, JOBS_VARIABLE

if TYPE_CHECKING:
    from robustdd_bench.executors import Executor
    from robustdd_bench.runs.execution.limits import TimeLimit

Function = TypeVar("Function", bound=Callable[..., Any])

PROCESSES = "processes"


def device_option(default: str | None, help: str) -> Callable[[Function], Function]:
    """Add `--device`."""
    return click.option(
        "--device",
        type=Device(),
        default=default,
        show_default=default is not None,
        envvar=DEVICE_VARIABLE if default is not None else None,
        show_envvar=default is not None,
        help=help,
    )


def executor_options(function: Function) -> Function:
    """Add `--jobs`, `--executor` and `--executor-set`."""
    options = (
        click.option(
            "--jobs",
            default="auto",
            show_default=True,
            envvar=JOBS_VARIABLE,
            show_envvar=True,
            metavar="N|auto",
            help="Cells computed at once, in processes; auto: as cores or GPUs. Results do not "
            "depend on it.",
        ),
        click.option(
            "--executor",
            type=RegisteredName("executors"),
            help="Where cells are computed; by default local for one job, else processes.",
        ),
        click.option(
            "--executor-set",
            "executor_assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set an option of the executor; repeatable.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def place_options(function: Function) -> Function:
    """Add what says where runs happen: device, threads, data, output folder, executor."""
    options = (
        device_option("auto", "auto, cpu, cuda or cuda:N; auto takes the GPU where there is one."),
        click.option(
            "--threads",
            type=int,
            default=1,
            show_default=True,
            help="CPU threads (0: torch's choice). More change the last bits, and so the run.",
        ),
        click.option(
            "--compile",
            type=OneOf("compile", ("auto", "on", "off")),
            default="auto",
            show_default=True,
            help="Compiled kernels; auto takes them where a C++ compiler or, on a GPU, Triton is.",
        ),
        data_root_option,
        click.option("--download", is_flag=True, help="Download the dataset if it is missing."),
        out_option,
        executor_options,
        click.option(
            "--time-limit",
            type=float,
            metavar="SECONDS",
            help="Stop in time and say what is left; the same command resumes.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def check_execution(session: Session, options: Mapping[str, Any]) -> TimeLimit | None:
    """Whatever can be told to be wrong with the options before torch is imported.

    Returns:
        The limit of time, from now on.

    Raises:
        UsageError: something is.
    """
    from robustdd_bench.runs.execution.processes import checked_jobs

    name, jobs = options["executor"], options["jobs"]
    if name is not None:
        session.registry.get("executors", name)
    checked_jobs(jobs)
    if name not in (None, PROCESSES) and jobs not in ("auto", "1") and _in_the_call("jobs"):
        raise UsageError(f"--jobs {jobs} is of the executor processes, not of {name}")
    if name is None and options["executor_assignments"]:
        raise UsageError("--executor-set needs --executor")
    seconds = options.get("time_limit")
    if seconds is None:
        return None
    from robustdd_bench.runs.execution.limits import TimeLimit

    return TimeLimit(seconds)


def _in_the_call(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def computes_elsewhere(session: Session, options: dict[str, Any]) -> bool:
    """Whether the executor that is named computes on other machines.

    Args:
        session: the plugins.
        options: what `executor_options` adds; the executor is kept in them.

    Raises:
        PluginError, UsageError: see `chosen_executor`.
    """
    if _means_jobs(options):
        return False
    executor = options["made_executor"] = _named_executor(session, options)
    return bool(executor.elsewhere)


def _means_jobs(options: Mapping[str, Any]) -> bool:
    """Whether `--jobs` alone says how many cells are computed at once, on this machine."""
    name = options["executor"]
    return name is None or (name == PROCESSES and not options["executor_assignments"])


def chosen_executor(
    session: Session, options: Mapping[str, Any], *, device: str, threads: int
) -> Executor:
    """The executor that the options mean.

    Args:
        session: the plugins.
        options: what `executor_options` adds, and `device`.
        device: "cpu" or "cuda".
        threads: CPU threads of each cell.

    Raises:
        PluginError: it cannot be loaded or made, or is no executor.
        UsageError: it has no such options.
    """
    from robustdd_bench.records.means import check_device
    from robustdd_bench.runs.execution.processes import executor_for

    if _means_jobs(options):
        return executor_for(
            options["jobs"],
            device=device,
            threads=threads,
            gpu=check_device(options["device"] or "auto"),
            here=options["executor"] is None,
        )
    made: Executor | None = options.get("made_executor")
    return _named_executor(session, options) if made is None else made


def _named_executor(session: Session, options: Mapping[str, Any]) -> Executor:
    from robustdd_bench.config import build_config, config_class, parse_assignments
    from robustdd_bench.executors import Executor

    name, settings = options["executor"], parse_assignments(options["executor_assignments"])
    entry = session.registry.get("executors", name)
    kind = entry.load()
    with blame(entry.plugin, f"executor {entry.name!r}"):
        what = f"executor {entry.name!r}"
        executor = kind(build_config(config_class(kind, what), settings, what))
        if not isinstance(executor, Executor):
            raise TypeError(f"it is a {type(executor).__name__}, not an Executor")
    return executor

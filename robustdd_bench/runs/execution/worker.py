"""The other end of an executor: a process that computes cells of runs that another one plans.

    worker = Worker(message, registry)
    receipt = worker.run("students/0", events)

`main` is the process of `robustdd_bench.runs.execution.processes`: it reads a line of JSON for each
cell from stdin, and writes lines of events and of how the cell ended to stdout. It ends when its
stdin does, in the middle of a cell too, so that none outlives the process that started it.
"""

from __future__ import annotations

import json
import signal
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustdd_bench import errors
from robustdd_bench.errors import PluginWarning, RobustDDError, RunFailedError
from robustdd_bench.executors import Cell, Events, Receipt
from robustdd_bench.guard import logged
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.records.environment import process
from robustdd_bench.records.means import DATA_VARIABLE
from robustdd_bench.records.plan import Plan
from robustdd_bench.runs.cells import cell_named
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.failures import failure_of
from robustdd_bench.runs.execution.fingerprint import fingerprint, refuse_other
from robustdd_bench.runs.execution.link import Link
from robustdd_bench.runs.progress.events import EventReporter
from robustdd_bench.runs.shared import SharedData
from robustdd_bench.runs.work import run_cell, threads

MOST_RUNS = 4
"""Runs whose networks and method a process keeps: those it worked on last."""


class OtherDataError(RunFailedError):
    """The data at hand are not those of the run: other ones, or none."""


class Worker:
    """Computes cells of one run; it lives as long as its process.

    Args:
        message: `Job.message` of the run.
        registry: the plugins installed here; they must be those of the process that planned.
        shared: data and layers of other runs in this process.
        here: the fingerprint of this process; None: it is taken.

    Raises:
        RunFailedError: this process is another kind of process; see `fingerprint`.
        OtherDataError: it has not the data of the run.
    """

    def __init__(
        self,
        message: Mapping[str, Any],
        registry: Registry,
        shared: SharedData | None = None,
        here: Mapping[str, str] | None = None,
    ) -> None:
        refuse_other(message["fingerprint"], fingerprint(registry) if here is None else here)
        self._plan, handed = Plan.from_dict(message["plan"]), message.get("data_file")
        process(self._plan.device)  # the code that runs is that of now, whatever is committed later
        self._context = RunContext(
            self._plan,
            registry,
            Path(message["out"]),
            Path(message["data_root"]),
            witnesses=message["witnesses"],
            shared=shared,
            data_file=None if handed is None else Path(handed),
            **message["limits"],
        )
        self._follow(message["kernels"])
        self._check_data(message["data"])
        self._told = False

    def _follow(self, kernels: bool) -> None:
        """Compute with compiled kernels if the process that planned does, else without."""
        if kernels and not self._context.compile:
            raise RunFailedError(
                "the run was planned with compiled kernels, and they cannot be had on the worker's "
                f"machine ({self._context.missing_kernels}); --compile off does without them"
            )
        self._context.compile = kernels

    def _check_data(self, planned: Sequence[str]) -> None:
        """Refuse to compute on other data than those that the run was planned with."""
        root = self._context.data_root
        try:
            with threads(self._plan.threads):
                here = self._context.data_hashes
        except RobustDDError as error:
            raise OtherDataError(str(error)) from error
        if list(here) != list(planned):
            raise OtherDataError(
                f"the data under {root} are not those that the run was planned with; see "
                f"--data-root and {DATA_VARIABLE}"
            )

    def run(
        self, name: str, events: Events, begins: Callable[[Cell], object] = lambda cell: None
    ) -> Receipt:
        """Compute a cell; its output and its receipt are then in the run's folder.

        Args:
            name: the cell's.
            events: takes what it tells, JSON values.
            begins: called once the data are there, before anything is computed; it may refuse.
        """
        with EventReporter(events) as reporter, logged(reporter.note), threads(self._plan.threads):
            if not self._told and self._context.missing_kernels is not None:
                reporter.note(self._context.missing_kernels)
            self._told = True
            cell = cell_named(self._context, name)
            begins(cell)
            with reporter.cell(cell.stage, cell.name):
                return run_cell(self._context, cell, reporter)


class KeptWorkers:
    """The runs that a process works on. Those it worked on last keep networks and method.

    Args:
        registry: the plugins installed here.
        here: the fingerprint of this process; None: it is taken.
    """

    def __init__(self, registry: Registry, here: Mapping[str, str] | None = None) -> None:
        self._registry = registry
        self.here = fingerprint(registry) if here is None else here
        self._shared = SharedData()
        self._workers: OrderedDict[str, Worker] = OrderedDict()

    def of(self, message: Mapping[str, Any]) -> Worker:
        """The worker of a run.

        Args:
            message: `Job.message` of the run.

        Raises:
            RunFailedError: see `Worker`.
        """
        key = json.dumps(message, sort_keys=True)
        if key not in self._workers:
            self._workers[key] = Worker(message, self._registry, self._shared, self.here)
            while len(self._workers) > MOST_RUNS:
                self._workers.popitem(last=False)
        self._workers.move_to_end(key)
        return self._workers[key]

    def forget(self) -> None:
        """Begin every run anew: one was interrupted somewhere."""
        self._workers.clear()


def failed_answer(error: Exception, name: str) -> dict[str, str]:
    """What a cell raised, as JSON values: the arguments of `CellFailedError`.

    Args:
        error: what it raised.
        name: the cell's.
    """
    failure = failure_of(error, name)
    trace = "".join(traceback.format_exception(error))
    kind = next(k.__name__ for k in type(failure).__mro__ if k.__module__ == errors.__name__)
    return {"kind": kind, "text": str(failure), "trace": trace}


def installed_plugins() -> Registry:
    """What is registered here; what is wrong with plugins is told by the process that plans."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return collect(get_plugin_manager())


def main() -> int:
    """Compute cells until stdin ends."""
    # Whoever started this may ignore Ctrl-C; it is how a cell is interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _serve(Link())
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(link: Link) -> None:
    workers = KeptWorkers(installed_plugins())
    while (request := link.next()) is not None:
        if "fingerprint" in request:
            link.send(fingerprint=workers.here)
            continue
        link.busy = True
        message, name = request["message"], request["cell"]
        try:
            receipt = workers.of(message).run(name, lambda event: link.send(event=event))
        except Exception as error:
            wants = {"wants": "data"} if isinstance(error, OtherDataError) else {}
            link.send(failed=failed_answer(error, name), **wants)
        else:
            link.send(receipt=receipt.model_dump(mode="json"))
        link.busy = False

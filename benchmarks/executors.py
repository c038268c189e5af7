"""What an executor adds to a cell: wall time of many small cells on each engine and on `local`.

    python benchmarks/executors.py [--engines local,processes] [--cells 150] [--repeats 5]
        [--executor-set ENGINE:KEY=VALUE ...] [--json [FILE]]

A run of the digits has a student a cell, of milliseconds. Every engine computes them one at a time,
in one worker, in turns with the others, each time into a fresh folder. The clock starts when the
distillation and the first WARM students are done, so that processes have started and data are
loaded, and stops when the last student is. Overhead is what an engine takes longer than `local`,
by the number of cells: JSON, events, receipts that are checked again, queues and polling. It is
less than the time from handing a cell over to hearing of its end where an engine takes the next
cell before. "start" is the time to the end of the first cell, less its work.

An engine that is not installed is left out, and said. A load from other programs makes all of it
longer; it is printed and kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from bench_results import Measured, Strict, this_commit, this_machine
from pydantic import Field, model_validator

from robustdd_bench.config import build_config, config_class, parse_assignments
from robustdd_bench.errors import PluginWarning, RobustDDError, UsageError
from robustdd_bench.executors import Cell, Executor, Job, Receipt
from robustdd_bench.files import write_json
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.records.environment import environment
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.pipeline import compute_cells
from robustdd_bench.runs.progress.displays import NullReporter

HERE = Path(__file__).resolve().parent

RESULT = HERE / "results" / "executors" / "overhead.json"
WARM = 20
"""Students that are computed before the clock starts."""
DEFAULTS = {"processes": {"jobs": 1}, "ray": {}, "slurm": {}}
"""Options that make an engine compute one cell at a time."""
AIMS_S = {"processes": 0.05, "ray": 0.15}
TRACK = """\
name = "small-cells"
version = 1
summary = "digits; {cells} students of milliseconds"
data = {{ dataset = "digits", ipc = 1, flip = false, options = {{ test_fraction = 0.05 }} }}
network = {{ name = "convnet", options = {{ depth = 2, width = 4 }} }}
students = {{ count = {cells}, epochs = 1, batch_size = 10, learning_rate = 0.01 }}
threat = {{ norm = "Linf", ladder = [0.1], headline = 0.1 }}

[[attacks]]
name = "fgsm"
"""


class Engine(Strict):
    """The measurements of one engine."""

    name: str
    options: dict[str, Any]
    wall_s: list[float] = Field(min_length=3)
    """Of all cells after the warm ones, for each repeat."""
    work_s: list[float] = Field(min_length=3)
    """What their receipts say that they took in all."""
    start_s: list[float] = Field(min_length=3)
    """To the end of the first cell, less its work."""
    overhead_s: float
    """A cell: median wall time less that of `local`, by the number of cells."""


class Overheads(Measured):
    """The file."""

    cells: int = Field(ge=50)
    engines: list[Engine]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        local = next(engine for engine in self.engines if engine.name == "local")
        for engine in self.engines:
            if {len(engine.wall_s), len(engine.work_s), len(engine.start_s)} != {self.n}:
                raise ValueError(f"{engine.name} was not measured {self.n} times")
            if abs(engine.overhead_s - overhead_s(engine.wall_s, local.wall_s, self.cells)) > 1e-9:
                raise ValueError(f"{engine.name}: overhead_s does not follow from the medians")
        return self


def overhead_s(wall_s: list[float], local_s: list[float], cells: int) -> float:
    """Seconds that an engine adds to a cell."""
    return (statistics.median(wall_s) - statistics.median(local_s)) / cells


def timed(executor: Executor) -> list[tuple[float, Receipt]]:
    """Note when cells end: a list that grows, of times and receipts.

    The class stays what it is: calls into a plugin are guarded, those into the harness are not.
    """
    ended: list[tuple[float, Receipt]] = []
    submit = executor.submit

    def noted(cell: Cell, job: Job) -> Future[Receipt]:
        future = submit(cell, job)
        future.add_done_callback(lambda done: ended.append((time.perf_counter(), done.result())))
        return future

    setattr(executor, "submit", noted)  # noqa: B010
    return ended


def make(name: str, options: Mapping[str, Any], registry: Registry) -> Executor:
    """An executor.

    Raises:
        RobustDDError: it is not installed, or has no such options.
    """
    kind = registry.get("executors", name).load()
    what = f"executor {name!r}"
    found = kind(build_config(config_class(kind, what), options, what))
    assert isinstance(found, Executor)
    return found


def measured(executor: Executor, registry: Registry, cells: int, out: Path) -> tuple[float, ...]:
    """Seconds of the cells after the warm ones, of their work, and of the start.

    Args:
        executor: where.
        registry: what is installed.
        cells: how many are timed.
        out: a fresh folder.
    """
    out.mkdir(parents=True)
    track = out / "track.toml"
    track.write_text(TRACK.format(cells=cells + WARM), encoding="utf-8")
    plan = make_plan(registry, method="random", track=str(track), device="cpu", threads=1)
    context = RunContext(plan, registry, out, Path("data"))
    context.prepare()
    ended, start = timed(executor), time.perf_counter()
    with NullReporter(context.folder) as progress:
        todo = [*cells_of(context, "distill"), *cells_of(context, "students")]
        compute_cells(context, executor, progress, todo)
    assert len(ended) == cells + WARM + 1, "every cell once"
    first, begin, end = ended[0], ended[WARM], ended[-1]
    work_s = sum(receipt.wall_s for _, receipt in ended[WARM + 1 :])
    return end[0] - begin[0], work_s, first[0] - start - first[1].wall_s


@contextlib.contextmanager
def installed() -> Iterator[Registry]:
    """What is installed, without a word about broken plugins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        yield collect(get_plugin_manager())


def chosen(words: str, assignments: list[str], registry: Registry) -> dict[str, dict[str, Any]]:
    """The engines that can be measured, with their options; `local` first.

    Args:
        words: names with commas between them.
        assignments: texts `ENGINE:KEY=VALUE`.
        registry: what is installed.

    Raises:
        UsageError: options are of no engine that was named.
    """
    names = [name for name in dict.fromkeys(["local", *words.split(",")]) if name]
    given: dict[str, list[str]] = {name: [] for name in names}
    for text in assignments:
        name, _, assigned = text.partition(":")
        if name not in given:
            raise UsageError(f"--executor-set {text!r}: name one of --engines, as processes:jobs=1")
        given[name].append(assigned)
    found = {}
    for name in names:
        options = DEFAULTS.get(name, {}) | parse_assignments(given[name])
        try:
            make(name, options, registry)
        except RobustDDError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
        else:
            found[name] = options
    return found


def main() -> int:
    """Measure, print, write."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("--engines", default="local,processes")
    made.add_argument("--executor-set", action="append", default=[], metavar="ENGINE:KEY=VALUE")
    made.add_argument("--cells", type=int, default=150)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--json", type=Path, nargs="?", const=RESULT, metavar="FILE")
    options = made.parse_args()
    if options.cells < 50 or options.repeats < 3:
        made.error("at least 50 cells and 3 repeats")
    load = os.getloadavg()[0]
    with installed() as registry, tempfile.TemporaryDirectory(prefix="executors.") as folder:
        try:
            engines = chosen(options.engines, options.executor_set, registry)
        except UsageError as error:
            made.error(str(error))
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in engines}
        for repeat in range(options.repeats):
            for name, settings in engines.items():
                out = Path(folder, f"{name}-{repeat}")
                executor = make(name, settings, registry)
                times[name].append(measured(executor, registry, options.cells, out))
    columns = {
        name: [list(values) for values in zip(*rows, strict=True)] for name, rows in times.items()
    }
    result = Overheads(
        schema_version=1,
        name="overhead",
        workload=f"{options.cells} students of the digits, one worker, after {WARM} warm ones",
        command=" ".join(["python", "benchmarks/executors.py", *sys.argv[1:]]),
        commit=this_commit(),
        n=options.repeats,
        machine=this_machine(load),
        versions=dict(environment()["packages"]),
        cells=options.cells,
        engines=[
            Engine(
                name=name,
                options=engines[name],
                wall_s=wall_s,
                work_s=work_s,
                start_s=start_s,
                overhead_s=overhead_s(wall_s, columns["local"][0], options.cells),
            )
            for name, (wall_s, work_s, start_s) in columns.items()
        ],
    )
    print(f"{options.cells} cells, n = {options.repeats}, load {load:.2f} before; a cell:")
    for engine in result.engines:
        wall_ms = 1e3 * statistics.median(engine.wall_s) / options.cells
        work_ms = 1e3 * statistics.median(engine.work_s) / options.cells
        aim = f", aim < {1e3 * AIMS_S[engine.name]:.0f}" if engine.name in AIMS_S else ""
        print(
            f"{engine.name}: {wall_ms:.1f} ms, of them {work_ms:.1f} its work; "
            f"{1e3 * engine.overhead_s:+.1f} ms beside local{aim}; "
            f"start {statistics.median(engine.start_s):.1f} s"
        )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, result.model_dump(mode="json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

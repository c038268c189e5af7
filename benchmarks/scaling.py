"""The CIFAR board on 8, 64 and 512 GPUs, on paper: how long, what is idle, and what bounds it.

    python benchmarks/scaling.py [--gpus 8,64,512] [--seeds 5] [--plan] [--write]

Cells and what they wait for are those that the sweeps of `benchmarks/gpu/board*.toml` plan, with
k-centre beside them and several seeds in place of one; experts that runs share are trained once.
What a cell takes is its counted operations, at rates that were measured on an H200, stage by stage
(`measured`). The order is that of `robustdd_bench.runs.execution.scheduler`: the first ready cell
of the first run, and a run is opened where nothing else is ready. The process that plans opens
runs, ends them and hands out cells one after the other, which takes time too.

Nothing is computed: no data and no GPU are needed. `--plan` plans anew, in two minutes, and writes
benchmarks/results/scaling/board.json; `--write` puts the tables into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scaling_cells import Job, chained, load, planned, save

HERE = Path(__file__).resolve().parent

PAGE = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- begin simulated -->", "<!-- end simulated -->"


@dataclass(frozen=True)
class Driver:
    """What the process that plans spends, serially, in seconds. Not measured at this size."""

    cell_s: float = 0.01
    """For each cell that it hands out."""
    open_s: float = 2.0
    """For a run that it opens: data, networks, the plan of its cells."""
    end_s: float = 2.0
    """For a run that it ends: the record and its figures."""
    overhead_s: float = 0.15
    """What the engine adds to a cell, on the GPU's side."""


@dataclass(frozen=True)
class Outcome:
    """A simulation."""

    makespan_s: float
    busy: float
    """Share of the GPUs' time that was spent on cells."""


def simulate(
    jobs: Sequence[Job],
    gpus: int,
    driver: Driver,
    *,
    cells_by_chain: bool = False,
    runs_by_chain: bool = False,
) -> Outcome:
    """Hand out the cells as the scheduler does.

    Args:
        jobs: the cells.
        gpus: how many are computed at once.
        driver: what the process that plans spends.
        cells_by_chain: of all ready cells of the runs that are open, the one with the longest chain
            behind it; else the first of the run that was opened first.
        runs_by_chain: open the run with the longest chain; else the first of the sweep.
    """
    of_run: dict[int, list[int]] = defaultdict(list)
    followers: dict[int, list[int]] = defaultdict(list)
    waiting = [len(job.before) for job in jobs]
    left: dict[int, int] = defaultdict(int)
    for index, job in enumerate(jobs):
        of_run[job.run].append(index)
        left[job.run] += 1
        for earlier in job.before:
            followers[earlier].append(index)
    chains = {run: max(jobs[index].chain_s for index in of_run[run]) for run in of_run}
    to_open = sorted(of_run, key=lambda run: (-chains[run] if runs_by_chain else 0.0, run))
    turn = {run: place for place, run in enumerate(to_open)}
    opened: set[int] = set()
    ready: list[tuple[float, int, int]] = []
    running: list[tuple[float, int]] = []
    now = spent = last = 0.0

    def offer(index: int) -> None:
        job = jobs[index]
        rank = -job.chain_s if cells_by_chain else turn[job.run]
        heapq.heappush(ready, (rank, job.place, index))

    def ended(index: int) -> None:
        nonlocal now
        for follower in followers[index]:
            waiting[follower] -= 1
            if not waiting[follower] and jobs[follower].run in opened:
                offer(follower)
        left[jobs[index].run] -= 1
        if not left[jobs[index].run]:
            now += driver.end_s

    while True:
        while len(running) < gpus:
            if ready:
                index = heapq.heappop(ready)[2]
                now += driver.cell_s
                seconds = jobs[index].seconds + driver.overhead_s
                spent += jobs[index].seconds
                heapq.heappush(running, (now + seconds, index))
            elif to_open:  # what has ended meanwhile is heard of when there is no more to do
                run = to_open.pop(0)
                opened.add(run)
                now += driver.open_s
                for index in of_run[run]:
                    if not waiting[index]:
                        offer(index)
            else:
                break
        if not running:
            break
        end, index = heapq.heappop(running)
        now = max(now, end)
        last = max(last, end)
        ended(index)
    return Outcome(max(now, last), spent / (gpus * max(now, last)))


def hours(seconds: float) -> str:
    """Hours, or minutes below two of them."""
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class Row:
    """A number of GPUs."""

    gpus: int
    bound_s: float
    """No order can be faster: the work by the GPUs, or the longest chain."""
    real: Outcome
    cells: Outcome
    """The cell with the longest chain first, of the runs that are open."""
    runs: Outcome
    """The run with the longest chain first."""
    free: Outcome
    """The real order where the process that plans spends nothing."""


def rows(jobs: Sequence[Job], gpus: Sequence[int], driver: Driver) -> list[Row]:
    """Simulate each number of GPUs."""
    work_s, chain_s = sum(job.seconds for job in jobs), max(job.chain_s for job in jobs)
    nothing = Driver(0.0, 0.0, 0.0, 0.0)
    return [
        Row(
            count,
            max(work_s / count, chain_s),
            simulate(jobs, count, driver),
            simulate(jobs, count, driver, cells_by_chain=True),
            simulate(jobs, count, driver, runs_by_chain=True),
            simulate(jobs, count, nothing),
        )
        for count in gpus
    ]


def tables(board: Board, gpus: Sequence[int]) -> str:
    """The tables of the page."""
    jobs = board.jobs
    work_s = sum(job.seconds for job in jobs)
    stages: dict[str, list[float]] = defaultdict(list)
    for job in jobs:
        stages[job.stage].append(job.seconds)
    first = max(range(len(jobs)), key=lambda index: jobs[index].chain_s)
    parts = [
        f"{len(board.names)} runs, {len(jobs)} cells, {work_s / 3600:.0f} GPU hours. The longest "
        f"chain is that of {board.names[jobs[first].run]}: {hours(jobs[first].chain_s)}.",
        "",
        "| GPUs | takes | idle | no order is faster than | bound by | longest cells first | "
        "longest runs first | free driver |",
        "| --- " * 8 + "|",
    ]
    for row in rows(jobs, gpus, Driver()):
        bound = "work" if row.bound_s > jobs[first].chain_s else "longest chain"
        parts.append(
            f"| {row.gpus} | {hours(row.real.makespan_s)} | {100 * (1 - row.real.busy):.0f} % | "
            f"{hours(row.bound_s)} | {bound} | {hours(row.cells.makespan_s)} | "
            f"{hours(row.runs.makespan_s)} | {hours(row.free.makespan_s)} |"
        )
    parts += [
        "",
        "| stage | cells | GPU hours | median | longest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage, each in stages.items():
        middle = sorted(each)[len(each) // 2]
        parts.append(
            f"| {stage} | {len(each)} | {sum(each) / 3600:.1f} | {middle:.1f} s | "
            f"{max(each):.1f} s |"
        )
    parts += ["", "| if | " + " | ".join(f"{count} GPUs" for count in gpus) + " |"]
    parts.append("| --- " * (len(gpus) + 1) + "|")
    for what, changed, driver in varied(jobs):
        takes = [hours(simulate(changed, count, driver).makespan_s) for count in gpus]
        parts.append(f"| {what} | {' | '.join(takes)} |")
    return "\n".join(parts) + "\n"


def varied(jobs: Sequence[Job]) -> Iterator[tuple[str, Sequence[Job], Driver]]:
    """What the answer depends on."""

    def scaled(factor: float, *stages: str) -> list[Job]:
        return [
            replace(job, seconds=job.seconds * (factor if job.stage in stages else 1.0))
            for job in jobs
        ]

    everything = ("experts", "distill", "students", "attacks", "sanity")
    yield "everything takes twice as long", scaled(2.0, *everything), Driver()
    yield "everything takes half as long", scaled(0.5, *everything), Driver()
    yield "distillations take twice as long", scaled(2.0, "distill"), Driver()
    yield "attacks take twice as long", scaled(2.0, "attacks"), Driver()
    yield "the engine adds 5 s to a cell", jobs, Driver(overhead_s=5.0)
    yield "a run is opened and ended in 0.2 s each", jobs, Driver(open_s=0.2, end_s=0.2)


@dataclass(frozen=True)
class Board:
    """The cells of the board and what they belong to."""

    jobs: list[Job]
    names: list[str]
    """Method and track of each run."""


def repeated(jobs: Sequence[Job], names: Sequence[str], seeds: int) -> Board:
    """The board with several seeds, which share no cells.

    Args:
        jobs: the cells with one seed.
        names: of its runs.
        seeds: how many. Those of a method on a track follow one another.
    """
    made: list[Job] = []
    places: dict[tuple[int, int], int] = {}
    of_run: dict[int, list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        of_run[job.run].append(index)
    for run in sorted(of_run):
        for seed in range(seeds):
            for index in of_run[run]:
                job = jobs[index]
                before = [places[earlier, seed] for earlier in job.before]
                places[index, seed] = len(made)
                made.append(replace(job, run=run * seeds + seed, before=before))
    return Board(chained(made), [name for name in names for _ in range(seeds)])


def with_tables(text: str, made: str) -> str:
    """The page with the tables between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/scaling.md lacks the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{made}\n{END}{tail}"


def main() -> int:
    """Simulate and print, or look at the page."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("--gpus", default="8,64,512")
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--plan", action="store_true", help="plan and count anew")
    made.add_argument("--write", action="store_true", help="write the tables into the page")
    options = made.parse_args()
    if options.plan:
        save(*planned())
    text = tables(repeated(*load(), options.seeds), [int(word) for word in options.gpus.split(",")])
    print(text, end="")
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_tables(page, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

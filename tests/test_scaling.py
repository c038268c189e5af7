"""docs/scaling.md: its tables are what the script computes, from planning code and scheduler."""

from __future__ import annotations

import heapq
import itertools
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import pytest
from small_runs import registry

from robustdd_bench.executors import Cell, Executor, Receipt
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.execution.graph import CellGraph
from robustdd_bench.runs.execution.scheduler import ActiveRun, Scheduler
from robustdd_bench.runs.operations import run_facts
from robustdd_bench.runs.progress.displays import NullReporter

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scaling():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scaling

        yield scaling
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def on_paper(scaling):
    return sys.modules["scaling_cells"]


def test_the_page_has_the_tables_of_the_script(scaling) -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    made = scaling.tables(scaling.repeated(*scaling.load(), 5), [8, 64, 512])
    assert scaling.with_tables(page, made) == page
    with pytest.raises(ValueError, match="lacks the marks"):
        scaling.with_tables("no marks", made)


def test_the_rates_on_the_page_are_those_of_the_record(scaling, on_paper) -> None:
    rates, page = on_paper.measured(), scaling.PAGE.read_text(encoding="utf-8")
    for text in (
        f"{rates.training / 1e12:.0f} Tera-operations/s | experts",
        f"{rates.matching / 1e12:.0f} Tera-operations/s | its matching",
        f"{1e3 * rates.step_s:.2f} ms | its students",
        f"{1e6 * rates.forward_s:.1f} µs a forward pass with",
        f"{1e6 * rates.autoattack_s:.0f} µs a forward pass |",
        f"{rates.sanity_s:.2f} s a student",
    ):
        assert text in page, text


def test_cells_are_those_of_the_planning_code(scaling, on_paper) -> None:
    jobs, names = scaling.load()
    found = registry()
    wanted = [
        ("random", "cifar10-ipc10", "default"),
        ("mtt", "cifar10-ipc10", "minutes"),
    ]
    plans = [
        make_plan(found, method=m, track=t, preset=p, device="cuda", elsewhere=True)
        for m, t, p in wanted
    ]
    made = on_paper.cells_on_paper(found, plans, on_paper.measured())
    for number, (method, track, _) in enumerate(wanted):
        run = names.index(f"{method} on {track}")
        committed = [job for job in jobs if job.run == run]
        fresh = [job for job in made if job.run == number]
        assert [(job.stage, job.place) for job in fresh] == [
            (job.stage, job.place) for job in committed
        ]
        for one, other in zip(fresh, committed, strict=True):
            assert one.seconds == pytest.approx(other.seconds, rel=1e-3, abs=1e-3)
            assert len(one.before) == len(other.before)
    stages = [job.stage for job in made if job.run == 1]
    assert stages.count("experts") == 4
    assert stages.count("attacks") == 10, "on a GPU students are attacked together, but for one"
    calibrating = {"method": "mat", "track": "cifar10-ipc5", "preset": "minutes", "device": "cpu"}
    counted = run_facts(make_plan(found, **calibrating), found).making
    assert {"experts": counted.experts, "distill": counted.distill} == on_paper.COUNTED


def test_small_boards_take_what_can_be_reckoned_by_hand(scaling) -> None:
    job, nothing = scaling.Job, scaling.Driver(0.0, 0.0, 0.0, 0.0)
    jobs = scaling.chained(
        [job(0, 0, "distill", 5.0), job(1, 0, "distill", 5.0), job(2, 0, "distill", 10.0)]
    )
    assert scaling.simulate(jobs, 2, nothing).makespan_s == 15.0
    assert scaling.simulate(jobs, 2, nothing, runs_by_chain=True).makespan_s == 10.0
    assert scaling.simulate(jobs, 2, nothing).busy == pytest.approx(20 / 30)
    slow = scaling.Driver(cell_s=1.0, open_s=2.0, end_s=3.0, overhead_s=4.0)
    assert scaling.simulate(jobs[:1], 2, slow).makespan_s == 2.0 + 1.0 + 4.0 + 5.0 + 3.0
    chain = scaling.chained([job(0, 0, "distill", 2.0), job(0, 1, "students", 3.0, [0])])
    assert [one.chain_s for one in chain] == [5.0, 3.0]
    assert scaling.simulate(chain, 8, nothing).makespan_s == 5.0
    board = scaling.repeated(chain, ["mat on x"], 3)
    assert (len(board.jobs), board.names) == (6, ["mat on x"] * 3)
    assert [one.before for one in board.jobs] == [[], [0], [], [2], [], [4]]


# --- against the real scheduler --------------------------------------------------------------


NOUGHT = "0" * 64
RECEIPT = Receipt(
    cell="", sha256=NOUGHT, inputs_sha256=NOUGHT, wall_s=0, peak_bytes=0, items=0, unit=""
)


class PaperCell(Cell):
    written: ClassVar[set[Path]] = set()

    def done(self):
        return self.output in self.written

    def receipt(self):
        return RECEIPT if self.done() else None


class PaperRun(ActiveRun):
    def __init__(self, run_id, cells):
        self.run_id = self.kin = run_id
        self.threads, self.message, self.seconds = 1, {}, {}
        self.progress = NullReporter()
        self.cells, self.graph = cells, CellGraph((), self.progress)

    def prepare(self, *, remote, timed):
        self.graph = CellGraph(self.cells, self.progress)

    def compute(self, cell):
        raise AssertionError

    def write_data(self, path):
        raise AssertionError

    def end(self, error, stage, cell):
        assert error is None


class PaperExecutor(Executor):
    def __init__(self, slots):
        super().__init__()
        self.slots, self.now, self.running = slots, 0.0, []
        self.count = itertools.count()

    def submit(self, cell, job):
        future = Future()
        seconds = float(cell.name.rpartition("=")[2])
        heapq.heappush(self.running, (self.now + seconds, next(self.count), cell, future))
        return future


class PaperScheduler(Scheduler):
    def _hear(self):
        if self._inbox.empty():
            executor = self._executor
            executor.now, _, cell, future = heapq.heappop(executor.running)
            PaperCell.written.add(cell.output)
            future.set_result(None)
        super()._hear()


@pytest.mark.parametrize("gpus", [3, 16, 60])
def test_the_order_is_that_of_the_real_scheduler(gpus, scaling) -> None:
    whole, _ = scaling.load()
    jobs = [job for job in whole if job.run >= 40]
    first = len(whole) - len(jobs)
    assert all(earlier >= first for job in jobs for earlier in job.before), "runs of one board"
    for index, job in enumerate(jobs):
        job.before = [earlier - first for earlier in job.before]
        job.seconds = round(job.seconds + 1e-3 * (index + 1), 6)  # no ties
    scaling.chained(jobs)
    PaperCell.written.clear()
    cells = [
        PaperCell(
            stage=job.stage,
            name=f"{index}={job.seconds}",
            output=Path(str(index)),
            inputs=tuple(Path(str(earlier)) for earlier in job.before),
        )
        for index, job in enumerate(jobs)
    ]
    runs = []
    for number in sorted({job.run for job in jobs}):
        own = [i for i, job in enumerate(jobs) if job.run == number]
        shared = {b for i in own for b in jobs[i].before} - set(own)
        runs.append(PaperRun(str(number), [cells[i] for i in [*sorted(shared), *own]]))
    executor = PaperExecutor(gpus)
    PaperScheduler(executor).drive(runs)
    nothing = scaling.Driver(0.0, 0.0, 0.0, 0.0)
    assert executor.now == pytest.approx(scaling.simulate(jobs, gpus, nothing).makespan_s, rel=1e-9)

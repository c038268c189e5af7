"""`--time-limit`: what is begun, what is interrupted, what is told, and that it resumes."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import press_ctrl_c, robustdd
from small_runs import MATCHING, TRACK, example, plan_of, registry, run, without_costs
from streams import Clock
from sweeps import planned, statuses, swept

from robustdd_bench.errors import UsageError
from robustdd_bench.executors import Cell, LocalExecutor, Receipt, Resources
from robustdd_bench.runs import planned as run_module
from robustdd_bench.runs import work
from robustdd_bench.runs.execution import limits
from robustdd_bench.runs.execution.limits import LimitReached, TimeLimit, TimeLimitError, Times
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter


class Slow(LocalExecutor):
    """Every cell takes 100 seconds of a clock."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.names = clock, []

    def submit(self, cell, job):
        done = super().submit(cell, job)
        self.clock.now += 100
        self.names.append(cell.name)
        return done


@pytest.fixture
def hundred(monkeypatch):
    """Cells whose receipts say that they took 100 seconds; the clock and the executor."""
    monkeypatch.setattr(run_module, "seconds_of_cells", lambda plan, registry: {})
    ticks = iter(range(0, 100_000, 100))
    monkeypatch.setattr(work, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    clock = Clock(0.0)
    return clock, Slow(clock)


def limited(plan, out, seconds, clock, executor):
    return execute(
        plan,
        registry(),
        executor,
        out=Path(out),
        data_root=Path("data"),
        reporter=NullReporter,
        limit=TimeLimit(seconds, clock),
    )


def cell(stage="students", seconds=None):
    resources = Resources(seconds=seconds)
    return Cell(stage=stage, name=f"{stage}/0", output=Path("x"), resources=resources)


def test_what_is_begun_is_expected_to_end() -> None:
    clock = Clock(0.0)
    limit = TimeLimit(1000, clock)
    assert limit.left_s() == 985, "what runs is interrupted a little earlier"
    assert limit.allows(cell(seconds=984))
    assert not limit.allows(cell(seconds=985))
    assert limit.allows(cell("distill", seconds=9999)), "it resumes from its checkpoint"
    assert limit.allows(cell())
    clock.now = 925
    assert not limit.allows(cell()), "nothing is known of it, and little time is left"
    assert not limit.allows(cell("distill", seconds=1))
    assert limit.allows(cell(seconds=59))
    clock.now = 990
    assert limit.left_s() == 0
    short = TimeLimit(10, clock)
    assert short.left_s() == 9
    assert short.allows(cell())


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_limit_is_a_positive_number(seconds) -> None:
    with pytest.raises(UsageError, match="the time limit must be above 0"):
        TimeLimit(seconds)


def test_a_cell_is_expected_to_take_what_those_like_it_took() -> None:
    times = Times()
    seen = Receipt(
        cell="x", sha256="0" * 64, inputs_sha256="0" * 64, wall_s=3, peak_bytes=7, items=1, unit="s"
    )
    times.add("kin", cell(), seen)
    times.add("kin", cell(), seen.model_copy(update={"wall_s": 5.0, "peak_bytes": 9}))
    assert times.of("kin", cell()).resources == Resources(seconds=4.0, memory_bytes=9)
    assert times.of("other", cell()).resources == Resources()
    assert times.of("kin", cell("sanity")).resources == Resources()
    attack = dataclasses.replace(cell("attacks"), attack="pgd", students=(0, 1))
    assert times.of("kin", attack).resources == Resources()
    times.count("kin", {("attacks", "pgd"): 10.0})
    # Two students; half of it, as such an estimate may be twice what it takes.
    assert times.of("kin", attack).resources == Resources(seconds=10.0)


# Of a run of method random: the set, two students, three attacks on each, two checks.
@pytest.mark.parametrize(
    ("seconds", "begun", "left"),
    [
        (850, 8, "attacks 1, sanity 2; attacks/1/pgd takes about 1.7 min, there is no time for it"),
        (950, 9, "sanity 2"),
        (300, 3, "students 1, attacks 5, sanity 2"),
    ],
)
def test_the_limit_leaves_what_cannot_end_and_says_it(
    seconds, begun, left, hundred, tmp_path, monkeypatch
) -> None:
    clock, slow = hundred
    plan = plan_of("random")
    with pytest.raises(TimeLimitError) as caught:
        limited(plan, tmp_path, seconds, clock, slow)
    assert len(slow.names) == begun
    text = str(caught.value)
    assert text.startswith(f"the time limit is reached; left: {left}")
    assert "; kept in " in text
    assert text.endswith(". Repeat the command to resume.")
    assert caught.value.exit_code == 0
    assert not (plan.folder(tmp_path) / "record.json").exists()
    monkeypatch.undo()
    finished = run(plan, tmp_path)
    assert without_costs(finished.record) == without_costs(example("random").record)


def test_what_has_never_run_is_known_from_its_operations(tmp_path, monkeypatch) -> None:
    found = {("students", None): 900.0}
    monkeypatch.setattr(run_module, "seconds_of_cells", lambda plan, registry: found)
    clock = Clock(0.0)
    slow = Slow(clock)
    with pytest.raises(TimeLimitError) as caught:
        limited(plan_of("random"), tmp_path, 400, clock, slow)
    assert slow.names == ["distill"]
    assert "; students/0 takes about 7.5 min, there is no time for it; kept in" in str(caught.value)


def test_a_limit_that_suffices_changes_nothing(hundred, tmp_path) -> None:
    finished = limited(plan_of("random"), tmp_path, 2000, *hundred)
    assert without_costs(finished.record) == without_costs(example("random").record)


def test_what_runs_is_interrupted_when_the_time_is_up() -> None:
    start, threads = time.monotonic(), threading.active_count()
    with pytest.raises(LimitReached), TimeLimit(0.4).interrupting():
        time.sleep(20)
    assert time.monotonic() - start < 5
    with TimeLimit(60).interrupting():
        pass
    until = time.monotonic() + 10  # the thread that interrupted may still be at its end
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_an_interruption_that_is_lost_comes_again(monkeypatch) -> None:
    monkeypatch.setattr(limits, "AGAIN_S", 0.2)
    lost = []

    def swallow():
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            lost.append(1)
        time.sleep(20)

    with pytest.raises(LimitReached), TimeLimit(0.2).interrupting():
        swallow()
    assert lost == [1]


def test_the_users_interruption_is_not_taken_for_the_limit() -> None:
    with pytest.raises(KeyboardInterrupt), TimeLimit(60).interrupting():
        press_ctrl_c()


def test_where_ctrl_c_is_ignored_the_limit_is_not() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(LimitReached), TimeLimit(0.2).interrupting():
            time.sleep(20)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_long_distillation_is_interrupted_and_resumes(jobs, tmp_path) -> None:
    words = ["run", "--method", "mtt", "--track", str(TRACK), "--device", "cpu"]
    words += ["--compile", "off", "--out", str(tmp_path), "--jobs", jobs]
    for text in MATCHING:
        words += ["--set", "iterations=1000000" if text.startswith("iterations") else text]
    first, steps = "left: distill 1, students 2, attacks 6, sanity 2; kept in", []
    for _ in range(12):  # on a busy machine several calls are at the experts
        done = robustdd(*words, "--time-limit", "15")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        last = done.stderr.splitlines()[-1]
        if "a checkpoint of the distillation" in last:
            assert first in last
            assert "experts 2/2, a checkpoint of the distillation" in last
            (metrics,) = tmp_path.rglob("metrics.jsonl")
            steps.append(len(metrics.read_text().splitlines()))
        if len(steps) == 2:
            break
    assert 0 < steps[0] < steps[1]


def test_a_sweep_says_which_runs_are_left(hundred, tmp_path) -> None:
    clock, slow = hundred
    sweep = planned(tmp_path, 'methods = ["random", "raising"]\nseeds = [0, 1]')
    result = swept(sweep, tmp_path, slow, limit=TimeLimit(1500, clock))
    assert statuses(result) == ["done", "left", "left", "left"]
    assert result.note.startswith(
        "the time limit is reached; 1 of 4 runs have ended, 3 are left; attacks/0/noise takes about"
    )
    folder = sweep.runs[1].plan.folder(tmp_path)
    assert f"; kept in {folder}: distill 1/1, students 2/2. Repeat" in result.note
    assert statuses(swept(sweep, tmp_path)) == ["done before", "done", "failed", "failed"]


def test_the_command_of_a_sweep_ends_well_and_prints_what_there_is(tmp_path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(f'tracks = "{TRACK}"\nmethods = "random"\n')
    words = ("sweep", str(path), "--device", "cpu", "--out", str(tmp_path), "--json")
    done = robustdd(*words, "--time-limit", "0.001")
    assert done.returncode == 0
    assert '"status": "left"' in done.stdout
    assert "0 of 1 runs have ended, 1 are left" in done.stderr
    assert robustdd(*words, "--time-limit", "-3").returncode == 2

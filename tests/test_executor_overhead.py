"""The benchmark of executors, its committed result, and what used to grow with the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_runs import plan_of, registry

from robustdd_bench.errors import UsageError
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.records.plan import Plan
from robustdd_bench.runs.cells import cell_named, cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.graph import CellGraph
from robustdd_bench.runs.progress.displays import NullReporter

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    try:
        import executors

        yield executors
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("executors", "bench_results"):
            sys.modules.pop(name, None)


def test_the_committed_result_is_consistent_and_within_the_aim(bench) -> None:
    result = bench.Overheads.model_validate_json(bench.RESULT.read_text(encoding="utf-8"))
    engines = {engine.name: engine for engine in result.engines}
    assert engines.keys() >= {"local", "processes"}
    for name, aim_s in bench.AIMS_S.items():
        if name in engines:
            assert engines[name].overhead_s < aim_s, name
    text = json.loads(bench.RESULT.read_text(encoding="utf-8"))
    text["engines"][1]["overhead_s"] += 0.001
    with pytest.raises(ValueError, match="does not follow from the medians"):
        bench.Overheads.model_validate(text)


def test_cells_are_timed_after_the_warm_ones(bench, tmp_path) -> None:
    wall_s, work_s, start_s = bench.measured(LocalExecutor(), registry(), 5, tmp_path / "out")
    assert 0 < work_s < wall_s
    assert start_s > 0
    assert bench.overhead_s([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], 10) == pytest.approx(0.1)


def test_engines_that_are_not_there_are_said_and_left_out(bench, capsys) -> None:
    found = bench.chosen("processes,magic", ['processes:gpus="7"'], registry())
    assert found == {"local": {}, "processes": {"jobs": 1, "gpus": "7"}}
    assert "left out: magic: unknown executor 'magic'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="name one of --engines"):
        bench.chosen("processes", ["ray:x=1"], registry())


def test_the_plan_is_hashed_once_however_many_cells_there_are(tmp_path, monkeypatch) -> None:
    context = RunContext(plan_of(), registry(), tmp_path, Path("data"))
    whole = {cell.name: cell for cell in cells_of(context, "attacks")}
    counted, run_id = [], Plan.run_id

    def counting(self):
        counted.append(self)
        return run_id(self)

    monkeypatch.setattr(Plan, "run_id", counting)
    for name, cell in whole.items():
        assert cell_named(context, name) == cell
        assert cell_named(context, name).bound == cell.bound
    assert len(counted) == 2 * len(whole) > 10
    with pytest.raises(UsageError, match="has no cell 'attacks/9/fgsm'"):
        cell_named(context, "attacks/9/fgsm")


def test_cells_that_are_ready_come_in_the_order_of_the_run(tmp_path) -> None:
    context = RunContext(plan_of(), registry(), tmp_path, Path("data"))
    cells = cells_of(context, "distill")
    graph = CellGraph(cells, NullReporter())
    (distill,) = graph.ready()
    graph.begins(distill)
    assert graph.ready() == []
    graph.again(distill)
    assert graph.ready() == cells

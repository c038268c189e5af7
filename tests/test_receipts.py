"""Receipts: which cell they are for, and what process did the work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from small_runs import TRACK, copy_of, example, plan_of, registry, run, without_costs
from test_board import bent
from test_pipeline import Counting, cell_names

from robustdd_bench.board.divisions import MARKS
from robustdd_bench.board.rows import _marks
from robustdd_bench.board.standings import standings
from robustdd_bench.cli.main import main
from robustdd_bench.executors import STAGES, Commit
from robustdd_bench.records.environment import host_id, process
from robustdd_bench.records.parts import Costs
from robustdd_bench.runs import assemble as assembly
from robustdd_bench.runs import planned as run_module
from robustdd_bench.runs import work
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext


def receipt_of(path: Path) -> Path:
    return path.with_name(path.name + ".cell.json")


def put(source: Path, target: Path) -> None:
    """One output over another, with its receipt."""
    shutil.copyfile(source, target)
    shutil.copyfile(receipt_of(source), receipt_of(target))


def unfinished(method: str, tmp_path: Path) -> Path:
    """A run whose cells are all there and whose record is not; its folder."""
    folder = copy_of(example(method), tmp_path)
    (folder / "record.json").unlink()
    return folder


def context(method: str, out: Path) -> RunContext:
    return RunContext(plan_of(method), registry(), out, Path("data"))


def experts(method: str, out: Path) -> list[Path]:
    """The stored experts of a run, by number; the store holds those of others as well."""
    return [cell.output for cell in cells_of(context(method, out), "experts")]


def undone(method: str, out: Path) -> list[str]:
    found = context(method, out)
    return [c.name for stage in STAGES for c in cells_of(found, stage) if not c.done()]


def test_an_expert_copied_over_another_is_made_again(tmp_path) -> None:
    folder = unfinished("mtt", tmp_path)
    first, second = experts("mtt", tmp_path)
    put(second, first)
    assert undone("mtt", tmp_path)[0] == "experts/expert-0"
    counting = Counting()
    again = run(plan_of("mtt"), tmp_path, executor=counting)
    assert counting.names == ["experts/expert-0"]
    assert without_costs(again.record) == without_costs(example("mtt").record)
    assert again.folder == folder


def test_an_expert_of_another_recipe_is_none_of_this_one(tmp_path) -> None:
    """Its file and its cell have the same names."""
    unfinished("mtt", tmp_path)
    other = run(plan_of("mtt", "expert_lr=0.02"), tmp_path / "other")
    assert other.record.status == "complete"
    (theirs,) = (tmp_path / "other" / "store").rglob("expert-0.safetensors")
    ours = experts("mtt", tmp_path)[0]
    assert theirs.parent.name != ours.parent.name
    put(theirs, ours)
    assert "experts/expert-0" in undone("mtt", tmp_path)


@pytest.mark.parametrize(
    ("source", "target", "cell"),
    [
        ("student-1.safetensors", "student-0.safetensors", "students/0"),
        ("attack-pgd-1.json", "attack-pgd-0.json", "attacks/0/pgd"),
        ("attack-fgsm-0.json", "attack-pgd-0.json", "attacks/0/pgd"),
        ("sanity-1.json", "sanity-0.json", "sanity/0"),
    ],
)
def test_outcomes_of_another_cell_are_noticed(source, target, cell, tmp_path) -> None:
    folder = unfinished("random", tmp_path)
    put(folder / "cells" / source, folder / "cells" / target)
    assert cell in undone("random", tmp_path)
    again = run(plan_of("random"), tmp_path)
    assert without_costs(again.record) == without_costs(example("random").record)


def test_outcomes_of_another_run_are_noticed(tmp_path) -> None:
    """Of the same set, students and images: another plan."""
    folder = unfinished("random", tmp_path)
    track = tmp_path / "other.toml"
    track.write_text(TRACK.read_text().replace("for the harness's own tests", "for this test"))
    other = run(plan_of("random", track=str(track)), tmp_path / "other")
    assert other.record.run_id != example("random").record.run_id
    assert other.record.students == example("random").record.students
    for path in sorted((other.folder / "cells").iterdir()):
        shutil.copyfile(path, folder / "cells" / path.name)
    names = undone("random", tmp_path)
    assert names == [name for name in cell_names("random") if name != "distill"]


def test_receipts_of_older_versions_hold_for_the_cell_they_name(tmp_path) -> None:
    folder = unfinished("mtt", tmp_path)
    for path in [*folder.rglob("*.cell.json"), *(tmp_path / "store").rglob("*.cell.json")]:
        found = json.loads(path.read_text())
        del found["bound"], found["process"]
        path.write_text(json.dumps(found))
    assert undone("mtt", tmp_path) == []
    record = run(plan_of("mtt"), tmp_path).record
    assert record.costs.processes == ()
    first, second = experts("mtt", tmp_path)
    put(second, first)
    assert undone("mtt", tmp_path)[0] == "experts/expert-0"


# Which process did the work.


def test_a_record_says_what_did_the_work_stage_by_stage() -> None:
    record = example("mtt").record
    here = process("cpu")
    stages = {item.stage: item.cells for item in record.costs.processes}
    assert stages == {"experts": 2, "distill": 1, "students": 2, "attacks": 6, "sanity": 2}
    assert {item.process for item in record.costs.processes} == {here}
    assert here.torch == record.torch
    assert re.fullmatch("[0-9a-f]{12}", here.host)
    assert not record.costs.mixed


@pytest.fixture
def elsewhere(monkeypatch):
    """From now on another process works: another commit, torch and machine."""

    def become(**changes) -> None:
        other = process("cpu").model_copy(update=changes)
        for module in (work, assembly, run_module):
            monkeypatch.setattr(module, "process", lambda device: other)

    return become


def test_a_resumed_run_names_every_process_that_did_a_part(tmp_path, elsewhere) -> None:
    plan = plan_of("mtt")
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, executor=Counting(stop_after=4))
    commit = Commit(sha="b" * 40, dirty=True)
    elsewhere(commit=commit, torch="9.9.9", host="0" * 12)
    record = run(plan, tmp_path).record
    found = [(p.stage, p.cells, p.process.torch) for p in record.costs.processes]
    here = process("cpu").torch
    assert found == [
        ("experts", 2, here),
        ("distill", 1, here),
        ("students", 1, here),
        ("students", 1, "9.9.9"),
        ("attacks", 6, "9.9.9"),
        ("sanity", 2, "9.9.9"),
    ]
    assert record.costs.mixed
    assert record.costs.dirty
    (standing,) = standings([record])
    assert {"mixed", "changed code"} <= set(_marks(standing)) <= set(MARKS)
    assert without_costs(record) == without_costs(example("mtt").record)


def test_stored_experts_name_the_process_that_trained_them(tmp_path, elsewhere) -> None:
    run(plan_of("mtt"), tmp_path)
    elsewhere(torch="9.9.9")
    record = run(plan_of("mtt", "iterations=2"), tmp_path).record
    torch = {item.stage: item.process.torch for item in record.costs.processes}
    assert torch["experts"] == process("cpu").torch
    assert torch["distill"] == "9.9.9"


def test_a_set_that_is_reused_brings_what_made_it(tmp_path, elsewhere, capsys) -> None:
    folder = copy_of(example("mtt"), tmp_path / "first")
    elsewhere(torch="9.9.9")
    call = ["evaluate", str(folder), "--track", str(folder / "record.json"), "--device", "cpu"]
    assert main([*call, "--out", str(tmp_path / "second"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["show", "run", found["folder"]]) == 0
    shown = capsys.readouterr().out
    assert f"torch {process('cpu').torch}" in re.search(r"distill by.*", shown)[0]
    assert "torch 9.9.9" in re.search(r"students by.*", shown)[0]


def test_a_run_by_one_process_is_one_line(capsys) -> None:
    assert main(["show", "run", str(example("random").folder)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "machine " in line]
    assert len(lines) == 1
    assert lines[0].startswith("made by")
    assert host_id() in lines[0]


def test_a_machine_is_told_apart_and_not_named() -> None:
    import platform

    assert host_id() == host_id()
    assert platform.node() not in host_id()


def test_a_run_does_not_finish_before_it_starts(tmp_path) -> None:
    costs = example("random").record.costs
    fields = costs.model_dump(mode="json") | {"finished": "2001-01-01T00:00:00Z"}
    with pytest.raises(ValueError, match="finished before it started"):
        Costs.model_validate_json(json.dumps(fields))


def test_a_clock_that_is_set_back_loses_no_run(tmp_path) -> None:
    folder = unfinished("random", tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"started": "2999-01-01T00:00:00+00:00"}))
    record = run(plan_of("random"), tmp_path).record
    assert record.costs.finished == record.costs.started
    assert bent(record).results_sha256 == example("random").record.results_sha256

"""A run of the first edition (commit 11852a9), cut after its students, is picked up as it lies.

tests/data/first_edition is its output folder: method mtt with tiny settings on the track of
tests/data/fast.toml, two stored experts, the set with its checkpoint, two students.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import registry, run
from test_pipeline import Counting

from robustdd_bench.executors import LocalExecutor
from robustdd_bench.records.means import torch_version
from robustdd_bench.records.plan import Plan
from robustdd_bench.runs.cells import all_cells
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.progress.displays import NullReporter

FIRST = Path(__file__).parent / "data" / "first_edition"
RUN = Path("fast") / "mtt" / "88b35494b924"
SAME_TORCH = pytest.mark.skipif(
    json.loads((FIRST / RUN / "plan.json").read_text())["plan"]["torch"] != torch_version(),
    reason="stored experts belong to a version of torch",
)
LATER = [f"attacks/{r}/{a}" for a in ("noise", "fgsm", "pgd") for r in range(2)]
LATER += [f"sanity/{r}" for r in range(2)]


def plan() -> Plan:
    return Plan.from_dict(json.loads((FIRST / RUN / "plan.json").read_text())["plan"])


@pytest.fixture
def out(tmp_path):
    shutil.copytree(FIRST, tmp_path / "out")
    return tmp_path / "out"


def test_its_plan_means_the_same_run() -> None:
    assert plan().folder(FIRST) == FIRST / RUN


@SAME_TORCH
def test_its_receipts_hold(out) -> None:
    context = RunContext(plan(), registry(), out, Path("data"))
    undone = [cell.name for cell in all_cells(context) if not cell.done()]
    assert undone == LATER


@SAME_TORCH
def test_what_is_there_is_not_computed_again(out) -> None:
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors") if "work" not in p.parts}
    assert len(before) == 5
    counting = Counting()
    finished = run(plan(), out, executor=counting)
    assert sorted(counting.names) == sorted(LATER)
    assert {path: path.read_bytes() for path in before} == before
    stages = {stage.stage: stage.cells for stage in finished.record.costs.stages}
    assert stages == {"experts": 2, "distill": 1, "students": 2, "attacks": 6, "sanity": 2}
    rows = (finished.folder / "metrics.jsonl").read_text().splitlines()
    assert rows == (FIRST / RUN / "metrics.jsonl").read_text().splitlines()


@SAME_TORCH
def test_a_distillation_resumes_from_its_checkpoint(out) -> None:
    made = (out / RUN / "distilled.safetensors").read_bytes()
    for path in (out / RUN).glob("distilled.safetensors*"):
        path.unlink()
    steps = []

    class Looking(NullReporter):
        def metrics(self, step, **values):
            steps.append((self._where(), step))
            super().metrics(step, **values)

    finished = run(plan(), out, executor=LocalExecutor(), reporter=Looking)
    assert (finished.folder / "distilled.safetensors").read_bytes() == made
    assert steps == [], "the checkpoint was of the last step, and the students are of this set"

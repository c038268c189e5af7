"""Tracks whose students are another architecture, or trained adversarially: whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import TRACK, example, plan_of, registry, run, without_costs
from torch import nn

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.protocol.tracks import load_track, parse_track
from robustdd_bench.records.plan import Plan, make_plan
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.context import RunContext

OTHERS = {
    "mlp": '[student_network]\nname = "mlp"\noptions = { width = 8 }\n',
    "batch-norm": '[student_network]\nname = "alexnet"\noptions = { norm = "batch" }\n',
    "pgd": "[students.adversarial]\neps = 0.1\nsteps = 2\n",
    "trades": '[students.adversarial]\nflavour = "trades"\neps = 0.1\nsteps = 2\n',
}


def plan_of_shipped(method, track):
    return make_plan(registry(), method=method, track=track, device="cpu")


def track_file(folder, text, name="fast"):
    path = folder / "t.toml"
    path.write_text(TRACK.read_text().replace('name = "fast"', f'name = "{name}"') + text)
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind: its plan and where it ended."""
    found = {}
    for name, text in OTHERS.items():
        folder = tmp_path_factory.mktemp(name)
        plan = plan_of("random", track=track_file(folder, text))
        found[name] = plan, run(plan, folder), folder
    return found


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_ends_in_a_record_that_holds_its_students(name, runs) -> None:
    plan, finished, folder = runs[name]
    record = read_record(finished.folder / "record.json")
    assert record == finished.record
    assert (record.status, record.run_id) == ("complete", plan.run_id())
    assert record.track == parse_track(TRACK.read_text() + OTHERS[name], "t")
    assert [s.index for s in record.students] == [0, 1]
    # What is read from the file is the student that the record tells of.
    context = RunContext(plan, registry(), folder, folder)
    pixels, labels = context.evaluation.pixels(), context.evaluation.labels
    for student in record.students:
        with torch.no_grad():
            right = context.student(student.index)(pixels).argmax(1) == labels
        assert torch.equal(right.cpu(), torch.as_tensor(unpack_bits(student.clean)))


@pytest.mark.parametrize("name", OTHERS)
def test_such_a_run_has_the_set_of_the_plain_track_and_other_students(name, runs) -> None:
    plain, record = example("random").record, runs[name][1].record
    assert record.run_id != plain.run_id
    assert record.track_sha256 != plain.track_sha256
    assert record.distilled.sha256 == plain.distilled.sha256
    assert [s.seed for s in record.students] == [s.seed for s in plain.students]
    assert not {s.sha256 for s in record.students} & {s.sha256 for s in plain.students}


@pytest.mark.parametrize("name", ["mlp", "trades"])
def test_such_a_run_is_the_same_again_bit_for_bit(name, runs, tmp_path) -> None:
    plan, finished, _ = runs[name]
    again = run(plan, tmp_path).record
    assert without_costs(again) == without_costs(finished.record)


@pytest.mark.parametrize("name", OTHERS)
def test_a_worker_gets_the_same_plan(name, runs) -> None:
    plan = runs[name][0]
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict(plan.to_dict()).run_id() == plan.run_id()


def test_the_method_distils_with_the_tracks_network_and_students_are_the_other(runs) -> None:
    plan, _, folder = runs["mlp"]
    context = RunContext(plan, registry(), folder, folder)
    assert any(isinstance(m, nn.Conv2d) for m in context.task.network(0).modules())
    student = context.student_network(context.distilled(), 0)
    assert not any(isinstance(m, nn.Conv2d) for m in student.modules())
    widths = [m.out_features for m in student.modules() if isinstance(m, nn.Linear)]
    assert widths == [8, 8, 10]


def test_without_a_network_of_their_own_students_are_what_the_method_distils_with() -> None:
    finished = example("random")
    context = RunContext(plan_of("random"), registry(), finished.folder.parents[2], TRACK.parent)
    student = context.student_network(context.distilled(), 3)
    for one, two in zip(student.parameters(), context.task.network(3).parameters(), strict=True):
        assert torch.equal(one, two)


def test_students_by_an_adversary_of_the_tracks_norm_are_others(tmp_path, runs) -> None:
    path = Path(track_file(tmp_path, OTHERS["pgd"]))
    path.write_text(path.read_text().replace('norm = "Linf"', 'norm = "L2"'))
    record = run(plan_of("random", track=str(path)), tmp_path).record
    assert record.track.threat.norm == "L2"
    others = {s.sha256 for s in runs["pgd"][1].record.students}
    assert not others & {s.sha256 for s in record.students}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[student_network]\nname = "mpl"\n', "unknown network 'mpl'; did you mean 'mlp'"),
        (
            '[student_network]\nname = "mlp"\noptions = { widht = 3 }\n',
            "unknown key 'widht'; did you mean 'wi",
        ),
        ('[student_network]\nname = "convnet"\noptions = { depth = 5 }\n', "divisible by 32"),
    ],
)
def test_students_that_cannot_be_built_are_told_before_anything_is_computed(
    text, line, tmp_path
) -> None:
    with pytest.raises(UsageError, match=line):
        run(plan_of("random", track=track_file(tmp_path, text)), tmp_path)
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("method", ["mat", "mtt", "dc", "dsa", "dm", "herding", "k-centre"])
def test_methods_distil_for_a_variant_as_they_do_for_its_track(method) -> None:
    names = [n for n in registry().names("tracks") if n.startswith("digits-ipc10-")]
    assert len(names) == 7
    config = plan_of_shipped(method, "digits-ipc10").config
    for name in names:
        assert plan_of_shipped(method, name).config == config


@pytest.mark.parametrize(
    "name", [n for n in registry().names("tracks") if n.startswith("digits-ipc10-transfer-")]
)
def test_the_students_of_the_shipped_digits_tracks_can_be_built(name, tmp_path) -> None:
    plan = plan_of_shipped("random", name)
    context = RunContext(plan, registry(), tmp_path, tmp_path)
    context.prepare()
    track = load_track(name, registry())
    assert context.task.network(0)(context.evaluation.pixels()[:2]).shape == (2, 10)
    assert track.student_network is not None

"""Witnesses: adversarial examples that anyone can check in one forward pass."""

from __future__ import annotations

import shutil

import pytest
import torch
from attack_models import linear_problem
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SUITE, copy_of, example, plan_of, record_json, registry, run, without_costs

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.cli.main import main
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.witnesses import (
    Witnesses,
    load,
    merge,
    on_grid,
    proven,
    rounded,
    save,
)
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.verification.setup import VerifyOptions
from robustdd_bench.verification.witnesses import verify_witnesses

ONLY = ("--witnesses-only", "--track", str(SUITE))


def keep(out, **options):
    return execute(
        plan_of(track=str(SUITE), **options), registry(), LocalExecutor(), out=out,
        data_root=out, reporter=NullReporter, witnesses=True,
    )  # fmt: skip


def verify(folder):
    return verify_witnesses(
        folder,
        registry(),
        VerifyOptions(data_root=folder, track=str(SUITE)),
        reporter=NullReporter,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return keep(tmp_path_factory.mktemp("kept"))


def images(count=6, seed=0):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def some(count=5, size=6):
    generator = torch.Generator().manual_seed(1)
    place = torch.randperm(size, generator=generator)[:count]
    moved = images(count, 2)
    moved[::2] = moved[::2].mul(255).round().div(255)
    return Witnesses(
        torch.arange(count) % 2, place, torch.linspace(0.1, 0.2, count).double(), moved
    )


def test_witnesses_come_back_bit_for_bit(tmp_path) -> None:
    found = some()
    save(tmp_path / "w", found, images(), {"run_id": "x"})
    again, about = load(tmp_path / "w", images())
    for name in ("student", "place", "eps", "images"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert about["run_id"] == "x"
    assert len(read_safetensors(tmp_path / "w")[0]["floats"]) == 2


def test_no_witnesses_come_back_as_none(tmp_path) -> None:
    none = some().take(torch.zeros(0, dtype=torch.int64))
    save(tmp_path / "w", none, images(), {})
    assert len(load(tmp_path / "w", images())[0]) == 0


@given(eps=st.floats(0, 0.3), seed=st.integers(0, 99))
def test_the_grid_point_stays_in_the_ball_where_the_ball_has_one(eps, seed) -> None:
    x = images(seed=seed)
    x[0] = x[0].round()
    threat = ThreatModel("Linf", eps)
    moved = threat.project(
        x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)), x
    )
    grid = on_grid(moved, x, threat).double().div(255)
    assert grid.min() >= 0
    assert grid.max() <= 1
    has_point = ((x.double() - eps) * 255).ceil() <= ((x.double() + eps) * 255).floor()
    assert ((grid - x.double()).abs()[has_point] <= eps + 1e-6).all()


def test_what_falls_only_between_grid_points_is_kept_as_it_is() -> None:
    problem = linear_problem((1, 2, 2), "Linf")
    w = problem.model[1].weight[0].detach().view(1, 2, 2)
    side = (1 - 2.0 * problem.labels).view(-1, 1, 1, 1)
    bare = problem.images - side * w.sign() * (problem.distances.float() + 1e-5).view(-1, 1, 1, 1)
    far = problem.images - side * w.sign() * 0.05
    threat = ThreatModel("Linf", 0.05)
    for moved, exact in ((bare, False), (far, True)):
        found = rounded(problem.model, problem.images, moved, problem.labels, threat, 8)
        falls = problem.model(found).argmax(1) != problem.labels
        assert falls.all()
        on = (found * 255 - (found * 255).round()).abs().flatten(1).amax(1) < 1e-4
        assert bool(on.all()) is exact


def test_the_smallest_eps_and_then_the_earliest_attack_is_kept() -> None:
    def part(student, place, eps, value):
        return Witnesses(
            torch.tensor(student), torch.tensor(place), torch.tensor(eps, dtype=torch.float64),
            torch.full((len(place), 1, 1, 1), value),
        )  # fmt: skip

    found = merge(
        [
            part([0, 0, 1], [3, 4, 3], [0.1, 0.2, 0.1], 0.25),
            part([0, 0, 1], [3, 4, 5], [0.1, 0.1, 0.2], 0.5),
        ]
    )
    rows = zip(
        found.student.tolist(), found.place.tolist(), found.eps.tolist(),
        found.images.flatten().tolist(), strict=True,
    )  # fmt: skip
    assert sorted(rows) == [
        (0, 3, 0.1, 0.25),
        (0, 4, 0.1, 0.5),
        (1, 3, 0.1, 0.25),
        (1, 5, 0.2, 0.5),
    ]


def test_only_a_witness_in_the_ball_that_fools_the_student_proves_anything() -> None:
    problem = linear_problem((1, 2, 2), "Linf")
    w = problem.model[1].weight[0].detach().view(1, 2, 2)
    side = (1 - 2.0 * problem.labels).view(-1, 1, 1, 1)
    moved = problem.images - side * w.sign() * 0.021
    moved[0] += 0.5  # leaves the ball
    found = Witnesses(
        torch.zeros(16, dtype=torch.int64),
        torch.arange(16),
        torch.full((16,), 0.021, dtype=torch.float64),
        moved,
    )

    def at(eps):
        threat = ThreatModel("Linf", eps)
        return proven(problem.model, problem.images, problem.labels, found, threat, 5)

    expected = problem.distances < 0.021
    expected[0] = False
    assert torch.equal(at(0.021), expected)
    assert not at(0.02).any()


def test_a_run_keeps_one_for_each_that_fell_and_its_record_stays_the_same(kept) -> None:
    assert without_costs(kept.record) == without_costs(example("random", track=str(SUITE)).record)
    verdict = verify(kept.folder)
    assert verdict.agrees
    assert verdict.same_weights
    assert [level.eps for level in verdict.levels] == [0.0, 0.02, 0.05, 0.10]
    headline = kept.record.aggregates.headline.mean
    assert verdict.levels[2].claimed == verdict.levels[2].left == pytest.approx(headline)
    assert verdict.levels[3].left < verdict.levels[0].left
    assert verdict.witnesses > 0


def test_students_are_trained_again_where_they_are_not_at_hand(kept, tmp_path) -> None:
    for name in ("record.json", "distilled.safetensors", "witnesses.safetensors"):
        shutil.copyfile(kept.folder / name, tmp_path / name)
    verdict = verify(tmp_path)
    assert verdict.agrees
    assert verdict.same_weights
    assert {path.name for path in tmp_path.iterdir()} == {
        "record.json",
        "distilled.safetensors",
        "witnesses.safetensors",
    }


def test_a_student_that_was_changed_in_its_folder_is_not_believed(kept, tmp_path) -> None:
    folder = copy_of(kept, tmp_path)
    path = folder / "cells" / "student-0.safetensors"
    tensors, about = read_safetensors(path)
    name = next(key for key in tensors if key.endswith("weight"))
    tensors[name] = -tensors[name]
    write_safetensors(path, tensors, about)
    verdict = verify(folder)
    assert verdict.same_weights
    assert verdict.agrees


def test_a_run_that_had_ended_gets_its_witnesses_later(tmp_path) -> None:
    plan = plan_of(track=str(SUITE))
    before = run(plan, tmp_path)
    assert not (before.folder / "witnesses.safetensors").exists()
    after = keep(tmp_path)
    assert not after.reused
    assert (after.folder / "witnesses.safetensors").is_file()
    assert without_costs(after.record) == without_costs(before.record)
    assert keep(tmp_path).reused


def test_witnesses_of_another_run_are_refused(kept, tmp_path) -> None:
    folder = copy_of(kept, tmp_path)
    tensors, about = read_safetensors(folder / "witnesses.safetensors")
    write_safetensors(folder / "witnesses.safetensors", tensors, about | {"run_id": "0" * 12})
    with pytest.raises(UsageError, match="holds the witnesses of run 0000"):
        verify(folder)


def test_witnesses_of_an_earlier_outcome_are_never_kept(tmp_path) -> None:
    first = keep(tmp_path)
    (first.folder / "cells" / "attack-noise-0.json").write_text("[]")
    again = run(plan_of(track=str(SUITE)), tmp_path)
    assert not (again.folder / "witnesses.safetensors").exists()
    left = {path.name for path in (again.folder / "cells").glob("witness-*.safetensors")}
    assert "witness-noise-0.safetensors" not in left
    assert "witness-noise-1.safetensors" in left
    assert verify(keep(tmp_path).folder).agrees


def _lose_one(tensors):
    for name in ("student", "place", "eps", "exact"):
        tensors[name] = tensors[name][:-1].clone()


def test_a_missing_witness_is_told_with_exit_code_1(kept, tmp_path, capsys) -> None:
    folder = copy_of(kept, tmp_path)
    images = _evaluation(folder)
    found, about = load(folder / "witnesses.safetensors", images)
    save(folder / "witnesses.safetensors", found.take(torch.arange(len(found) - 1)), images, about)
    assert main(["verify", str(folder), *ONLY, "--json"]) == 1
    out = capsys.readouterr()
    assert '"agrees": false' in out.out
    assert out.err.count("\n") == 1
    assert "claims more or less than its witnesses prove" in out.err


def _evaluation(folder):
    from robustdd_bench.runs.context import RunContext

    return RunContext(plan_of(track=str(SUITE)), registry(), folder, folder).evaluation.pixels()


def test_verify_prints_a_table_and_says_that_it_agrees(kept, capsys) -> None:
    assert main(["verify", str(kept.folder), *ONLY]) == 0
    out = capsys.readouterr()
    assert "left by witnesses" in out.out
    assert "agrees with its witnesses" in out.err


def test_without_witnesses_the_line_says_how_to_make_them(tmp_path, capsys) -> None:
    folder = copy_of(example("random", track=str(SUITE)), tmp_path)
    assert main(["verify", str(folder), *ONLY]) == 2
    err = capsys.readouterr().err
    assert "there are no witnesses at" in err
    assert "--witnesses" in err
    assert record_json(folder)["command"] in err


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.pop("eps"),
        lambda t: t.update(place=t["place"] + 1000),
        lambda t: t.update(exact=t["exact"].int()),
        lambda t: t.update(grid=t["grid"][:-3].clone()),
        lambda t: t.update(grid=torch.zeros(9, dtype=torch.uint8)),
        lambda t: t.update(floats=torch.zeros(3, 1, 4, 4)),
        _lose_one,
    ],
)
def test_damaged_witnesses_are_refused_in_one_line(damage, tmp_path) -> None:
    path = tmp_path / "w"
    save(path, some(), images(), {})
    tensors, about = read_safetensors(path)
    damage(tensors)
    write_safetensors(path, tensors, about)
    with pytest.raises(UsageError, match="is not a file of witnesses"):
        load(path, images())


def test_a_small_file_cannot_unpack_to_gigabytes(tmp_path) -> None:
    import zlib

    path = tmp_path / "w"
    save(path, some(), images(), {})
    tensors, about = read_safetensors(path)
    bomb = zlib.compress(b"\0" * 10_000_000, 9)
    tensors["grid"] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    write_safetensors(path, tensors, about)
    with pytest.raises(UsageError, match="is not a file of witnesses"):
        load(path, images())

"""Transfer matrices: what they hold, what they refuse, what they keep, and what people see."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from attack_models import make_attack, task_of
from commands import robustdd
from small_runs import TRACK, plan_of, registry, run

import robustdd_bench as rdd
from robustdd_bench.attacks import ThreatModel
from robustdd_bench.drawing.rendering import png_size
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.evaluation.statistics.means import aggregate
from robustdd_bench.records.record import read_record
from robustdd_bench.seeds import ExampleGenerator
from robustdd_bench.transfers import matrix as matrices
from robustdd_bench.transfers.call import matrix_of
from robustdd_bench.transfers.matrix import TransferCell, TransferMatrix
from robustdd_bench.transfers.show import _width, matrix_png, matrix_table
from robustdd_bench.transfers.sources import check_alike, common_eps, load_runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs of two students each, whose PGD has more than two steps."""
    out = tmp_path_factory.mktemp("runs")
    track = out / "fast.toml"
    text = (
        TRACK.read_text().replace("epochs = 3\n", "epochs = 60\n").replace("steps = 2", "steps = 4")
    )
    track.write_text(text)
    plans = [plan_of(track=str(track), seed=seed) for seed in (0, 1)]
    plans.append(plan_of("k-means", track=str(track)))
    return [run(plan, out).folder for plan in plans]


def matrix(paths, **options):
    return matrix_of(paths, registry(), {"device": "cpu", **options})


def test_each_cell_is_what_pgd_on_one_student_does_to_another(folders) -> None:
    found = matrix(folders)
    assert found.labels == ["random-0", "random-1", "k-means-0"]
    runs = load_runs(folders, registry(), folders[0], "cpu")
    split = runs[0].context.evaluation
    images, labels = split.pixels(), split.labels
    attack, threat = make_attack("pgd", steps=4), ThreatModel("Linf", 0.1)
    for source, row in zip(runs, found.cells, strict=True):
        seeds = source.context.seeds.shared()
        for a, made_on in enumerate(source.students):
            streams = ExampleGenerator(seeds.seed("attack", "pgd", a), torch.arange(len(images)))
            moved = attack.perturb(task_of(made_on, images, labels, threat, streams)).images
            for target, cell in zip(runs, row, strict=True):
                for b, student in enumerate(target.students):
                    with torch.no_grad():
                        before = student(images).argmax(1) == labels
                        after = student(moved).argmax(1) == labels
                    expected = float((before & after).double().mean())
                    assert cell.shares[a][b] == pytest.approx(expected, abs=1e-12)
    for i, row in enumerate(found.cells):
        for j, cell in enumerate(row):
            shares = cell.shares
            if i == j:
                assert cell.accuracy.values == (shares[0][0], shares[1][1])
                assert cell.siblings == pytest.approx((shares[0][1] + shares[1][0]) / 2)
            else:
                columns = [(shares[0][b] + shares[1][b]) / 2 for b in range(2)]
                assert cell.accuracy.values == pytest.approx(columns)
                assert cell.siblings is None
            assert cell.accuracy.mean <= found.clean[j].mean
    assert len({round(value, 6) for row in found.accuracy for value in row}) > 3


def test_the_diagonal_is_what_the_records_say_of_the_same_attack(folders) -> None:
    found = matrix(folders)
    for i, folder in enumerate(folders):
        record = read_record(folder / "record.json")
        for r, student in enumerate(record.students):
            bits = [a.robust for a in student.attacks if (a.attack, a.eps) == ("pgd", 0.1)]
            share = float(unpack_bits(bits[0]).double().mean())
            assert found.cells[i][i].shares[r][r] == pytest.approx(share, abs=1e-12)
            clean = float(unpack_bits(student.clean).double().mean())
            assert found.clean[i].values[r] == pytest.approx(clean, abs=1e-12)


def test_the_first_student_alone_can_be_the_source(folders) -> None:
    whole, first = matrix(folders[:2]), matrix(folders[:2], sources="first")
    for one, other in zip(whole.cells, first.cells, strict=True):
        for all_of_them, only in zip(one, other, strict=True):
            assert only.shares == all_of_them.shares[:1]
    assert first.cells[0][0].accuracy.n_students == 1
    assert first.cells[0][0].accuracy.std is None
    assert first.cells[0][1].accuracy.values == whole.cells[0][1].shares[0]


def test_attack_eps_and_images_can_be_chosen(folders) -> None:
    base = matrix(folders[:2], examples=20)
    assert base.examples == 20
    stronger = matrix(folders[:2], examples=20, eps=0.4)
    assert stronger.cells[0][0].accuracy.mean < base.cells[0][0].accuracy.mean
    assert matrix(folders[:1], attack="vmi-fgsm", config={"neighbours": 1}).config["steps"] == 10
    assert base.config["steps"] == 4, "the suite's settings"
    assert matrix(folders[:1], examples=9, config={"steps": 7}).config["steps"] == 7


def test_pairs_are_kept_and_only_what_is_new_is_computed(folders, tmp_path, monkeypatch) -> None:
    made: list[str] = []
    kept = matrices.move_examples

    def spy(models, *args, **options):
        made.append(options["name"])
        return kept(models, *args, **options)

    monkeypatch.setattr(matrices, "move_examples", spy)
    two = matrix(folders[:2], out=tmp_path, examples=30)
    assert (len(made), two.reused) == (4, 0)
    assert matrix(folders[:2], out=tmp_path, examples=30).to_dict() == two.to_dict()
    assert len(made) == 4
    three = matrix(folders, out=tmp_path, examples=30)
    assert (len(made), three.reused) == (10, 4)
    for i in range(2):
        for j in range(2):
            assert three.cells[i][j].shares == two.cells[i][j].shares
    assert three.accuracy == matrix(folders, examples=30).accuracy
    del made[:]
    assert matrix(folders[:2], out=tmp_path, examples=31).reused == 0
    assert matrix(folders[:2], out=tmp_path, examples=30, eps=0.05).reused == 0
    assert matrix(folders[:2], out=tmp_path, examples=30, config={"steps": 5}).reused == 0
    assert len(made) == 12
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["", "{}", '{"inputs": 1}', "not JSON", "[1, 2]"])
def test_a_damaged_pair_is_made_again(folders, tmp_path, damage) -> None:
    first = matrix(folders[:1], out=tmp_path, examples=20)
    (path,) = (tmp_path / "pairs").iterdir()
    good = path.read_text()
    path.write_text(damage)
    again = matrix(folders[:1], out=tmp_path, examples=20)
    assert (again.reused, again.accuracy) == (0, first.accuracy)
    assert path.read_text() == good
    kept = json.loads(good)
    for shares in ([[0.5]], [[0.5, 2.0], [0.1, 0.1]], "text"):
        path.write_text(json.dumps(kept | {"shares": shares}))
        assert matrix(folders[:1], out=tmp_path, examples=20).reused == 0


def copied(folder, tmp_path):
    there = tmp_path / "moved" / folder.name
    shutil.copytree(folder, there)
    return there


def test_a_run_may_have_been_moved(folders, tmp_path) -> None:
    moved = copied(folders[0], tmp_path)
    assert matrix([moved], examples=20).accuracy == matrix(folders[:1], examples=20).accuracy


def test_what_cannot_be_compared_is_refused_in_one_line(folders, tmp_path) -> None:
    def told(paths, **options):
        with pytest.raises(UsageError) as caught:
            matrix(paths, **options)
        text = str(caught.value)
        assert "\n" not in text
        return text

    one = folders[0]
    assert "needs at least one run" in told([])
    assert "is named twice" in told([one, one])
    assert "is no folder of a run" in told([tmp_path / "nothing"])
    assert "did you mean 'pgd'" in told([one], attack="pdg")
    assert "makes its examples on other students of a run already" in told([one], attack="transfer")
    assert "does not attack in Linf" in told([one], attack="ddn")
    assert "unknown key 'stepz'; did you mean 'steps'" in told([one], config={"stepz": 1})
    assert "eps must lie in (0, 1] in Linf, not 0" in told([one], eps=0.0)
    assert "examples must lie in 1.." in told([one], examples=0)
    assert "unknown sources 'frist'; did you mean 'first'" in told([one], sources="frist")
    assert "unknown option 'exampels'" in told([one], exampels=3)


def test_runs_must_be_judged_on_the_same_images_in_the_same_norm(folders) -> None:
    first = read_record(folders[0] / "record.json")
    threat, data = first.track.threat, first.data

    def told(**changes):
        with pytest.raises(UsageError) as caught:
            check_alike(Path("b"), first.model_copy(update=changes), Path("a"), first)
        return str(caught.value)

    check_alike(Path("b"), first, Path("a"), first)
    start = "b and a cannot be held against each other: "
    text = f"{start}one is judged on the validation split, one on the test split"
    assert told(split="validation") == text
    other = data.model_copy(update={"evaluation_sha256": "0" * 64})
    assert told(data=other) == f"{start}tracks fast@1 and fast@1 judge on other images"
    other = data.model_copy(update={"dataset": "cifar10"})
    assert told(data=other) == f"{start}their datasets are cifar10 and digits"
    track = first.track.model_copy(update={"threat": threat.model_copy(update={"norm": "L2"})})
    assert told(track=track) == f"{start}their norms are L2 and Linf"


def test_tracks_of_two_headlines_need_an_eps(folders) -> None:
    runs = load_runs(folders[:2], registry(), folders[0], "cpu")
    record = runs[0].record
    threat = record.track.threat.model_copy(update={"headline": 0.05})
    track = record.track.model_copy(update={"threat": threat})
    lower = dataclasses.replace(runs[0], record=record.model_copy(update={"track": track}))
    with pytest.raises(UsageError, match=r"have the headline eps 0\.05 and 0\.10; give one"):
        common_eps([lower, runs[1]], None)
    assert common_eps([lower, runs[1]], 0.2) == 0.2
    assert common_eps(runs, None) == 0.1


def test_a_run_without_its_students_says_how_to_make_them(folders, tmp_path) -> None:
    bare = copied(folders[0], tmp_path)
    student = bare / "cells" / "student-1.safetensors"
    kept = student.read_bytes()
    student.unlink()
    with pytest.raises(
        UsageError, match=f"keeps no student 1, .*robustdd evaluate {bare} --out DIR"
    ):
        matrix([bare])
    shutil.copyfile(bare / "cells" / "student-0.safetensors", student)
    with pytest.raises(
        UsageError, match=r"student 1 of .* is not the one that its record tells of"
    ):
        matrix([bare])
    student.write_bytes(kept)
    (bare / "distilled.safetensors").unlink()
    with pytest.raises(UsageError, match="keeps no distilled set"):
        matrix([bare])


def test_the_command_prints_a_table_or_json_and_writes_both_files(folders, tmp_path) -> None:
    out, paths = tmp_path / "t", [str(folder) for folder in folders]
    done = robustdd("transfer", *paths, "--examples", "25", "--out", str(out), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("accuracy in %; pgd, Linf eps 0.10, 25 images")
    assert lines[1].split()[:3] == ["made", "on", "random-0"]
    assert all(len(line) <= 80 for line in lines[1:6])
    assert lines[5].startswith("(clean)")
    assert "On examples of other students of the same run: random-0 " in done.stdout
    assert "pgd on the students of random-0 (1 of 3)" in done.stderr
    assert png_size((out / "transfer.png").read_bytes()) is not None
    again = robustdd(
        "transfer", *paths, "--examples", "25", "--out", str(out), "--device", "cpu", "--json"
    )
    assert "9 of 9 pairs reused" in again.stderr
    told = json.loads(again.stdout)
    assert told == json.loads((out / "transfer.json").read_text())
    assert len(told["cells"]) == 9
    assert {cell["source"] for cell in told["cells"]} == {"random-0", "random-1", "k-means-0"}
    assert told["runs"][0]["students"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--eps", "x"), "--eps takes a number or a fraction like 8/255, not 'x'"),
        (("--eps", "1/0"), "--eps takes a number or a fraction like 8/255, not '1/0'"),
        (("--attack", "pdg"), "unknown attack 'pdg'; did you mean 'pgd'?"),
        (("--set", "steps"), "--set needs key=value, not 'steps'"),
        (("--examples", "0"), "examples must lie in 1..90, not 0"),
        (("--device", "gpu"), "unknown device 'gpu'"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_two(folders, tmp_path, args, message) -> None:
    done = robustdd("transfer", str(folders[0]), "--out", str(tmp_path / "t"), *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "t").exists()


def test_it_can_be_called_from_python(folders) -> None:
    found = rdd.transfer([rdd.load_run(folders[0]), folders[1]], examples=10, device="cpu")
    assert isinstance(found, rdd.TransferMatrix)
    assert repr(found) == "TransferMatrix(pgd on random-0, random-1, eps 0.1)"
    with pytest.raises(UsageError, match="unknown option 'exsamples'"):
        rdd.transfer(folders, exsamples=10)


def made_up(folders, labels):
    """A matrix of many runs, of which only the labels and figures are looked at."""
    first = load_runs(folders[:1], registry(), folders[0], "cpu")[0]
    shares = aggregate([0.45, 0.55], 100)

    def cell(source, target):
        return TransferCell(
            source=source, target=target, accuracy=shares, shares=((0.5,),), siblings=None,
            reused=False,
        )  # fmt: skip

    return TransferMatrix(
        runs=tuple(dataclasses.replace(first, label=label) for label in labels),
        attack="pgd",
        config={},
        norm="Linf",
        eps=8 / 255,
        examples=100,
        sources="all",
        clean=tuple(aggregate([0.9, 1.0], 100) for _ in labels),
        cells=tuple(tuple(cell(a, b) for b in labels) for a in labels),
    )


@pytest.mark.parametrize(
    ("count", "spread", "numbered"),
    [(2, True, False), (5, True, True), (9, False, True), (14, False, True)],
)
def test_the_table_fits_into_eighty_columns(folders, count, spread, numbered) -> None:
    labels = [f"method-number-{i}" for i in range(count)]
    table = matrix_table(made_up(folders, labels))
    assert count > 9 or _width(table) <= 80
    assert ("±" in table.texts()[0][1]) == spread
    assert (table.headings()[1] == "1") == numbered
    assert table.texts()[0][0] == ("1 method-number-0" if numbered else "method-number-0")


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_picture_has_a_place_for_every_cell(folders, count) -> None:
    picture = matrix_png(made_up(folders, [f"method-number-{i}" for i in range(count)]))
    size = png_size(picture)
    assert size is not None
    width, height = size
    assert 400 < width < 3000
    assert 400 < height < 3000
    assert picture == matrix_png(made_up(folders, [f"method-number-{i}" for i in range(count)]))


def test_on_a_gpu_students_are_attacked_together_with_the_same_outcome(folders) -> None:
    from simulated_device import simulated_gpu

    expected = matrix(folders[:2], examples=30)
    groups = []
    kept = matrices.move_examples

    def spy(models, *args, **options):
        groups.append(len(models))
        return kept(models, *args, **options)

    with pytest.MonkeyPatch.context() as patch, simulated_gpu():
        patch.setattr(matrices, "move_examples", spy)
        found = matrix(folders[:2], examples=30, device="cuda")
    assert groups == [2, 2]
    for one, other in zip(found.accuracy, expected.accuracy, strict=True):
        assert one == pytest.approx(other, abs=0.05)

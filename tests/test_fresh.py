"""Verification with fresh students: the test behind it, and what the command says."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from commands import robustdd
from small_runs import copy_of, example, registry
from verified_runs import edited

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import pack_bits
from robustdd_bench.evaluation.statistics import randomisation
from robustdd_bench.evaluation.statistics.randomisation import compare_groups, smallest_p
from robustdd_bench.records.record import write_record
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.verification.fresh import SIGNIFICANCE, verify_fresh
from robustdd_bench.verification.setup import VerifyOptions


def test_the_p_values_are_those_of_a_loop_over_all_relabelings():
    source = np.random.default_rng(0)
    first, second = source.normal(size=(3, 4)), source.normal(size=(3, 5))
    first[1] += 1.5
    values = np.concatenate([first, second], 1)
    spread = values.std(1)
    seen = (first.mean(1) - second.mean(1)) / spread
    largest, smallest = [], []
    for chosen in itertools.combinations(range(9), 4):
        rest = [k for k in range(9) if k not in chosen]
        difference = (values[:, chosen].mean(1) - values[:, rest].mean(1)) / spread
        largest.append(difference.max())
        smallest.append(difference.min())
    for place, shift in enumerate(compare_groups(first, second)):
        assert shift.higher == pytest.approx(np.mean([x >= seen[place] - 1e-12 for x in largest]))
        assert shift.lower == pytest.approx(np.mean([x <= seen[place] + 1e-12 for x in smallest]))
        assert shift.difference == pytest.approx(first[place].mean() - second[place].mean())


def test_groups_that_are_apart_have_the_smallest_p_and_equal_ones_the_largest():
    first, second = np.array([[0.8, 0.9, 0.85]]), np.array([[0.1, 0.2, 0.15, 0.3]])
    (apart,) = compare_groups(first, second)
    assert apart.higher == pytest.approx(smallest_p(3, 4)) == pytest.approx(1 / 35)
    assert apart.lower == 1
    (under,) = compare_groups(second, first)
    assert under.lower == pytest.approx(1 / 35)
    (equal,) = compare_groups(np.full((1, 3), 0.5), np.full((1, 4), 0.5))
    assert (equal.higher, equal.lower) == (1, 1)


def test_honest_groups_are_refused_at_any_level_in_one_of_a_hundred_cases():
    source = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        values = source.normal(size=(4, 10)) + source.normal(size=10)
        hits += any(s.higher <= SIGNIFICANCE for s in compare_groups(values[:, :5], values[:, 5:]))
    assert 0.002 < hits / 2000 < 0.018


def test_relabelings_that_are_too_many_are_drawn_and_give_about_the_same(monkeypatch):
    source = np.random.default_rng(1)
    first, second = source.normal(size=(2, 5)) + 1, source.normal(size=(2, 8))
    exact = compare_groups(first, second)
    monkeypatch.setattr(randomisation, "MOST", 10)
    monkeypatch.setattr(randomisation, "DRAWN", 20_000)
    for one, other in zip(exact, compare_groups(first, second), strict=True):
        assert one.higher == pytest.approx(other.higher, abs=0.01)
        assert other.higher >= 1 / 20_001


def test_groups_of_other_levels_or_none_are_refused():
    for shape in ((3, 2), (2, 0)):
        with pytest.raises(UsageError, match="same levels"):
            compare_groups(np.zeros((2, 3)), np.zeros(shape))


# The command, on a track of two students, which needs 13 fresh ones.


def _call(folder, *more):
    return robustdd(
        "verify", str(folder), "--track", "tests/data/fast.toml", "--threads", "1", *more
    )


@pytest.fixture(scope="module")
def verdict():
    options = VerifyOptions(data_root=example().folder, track="tests/data/fast.toml")
    return verify_fresh(
        example().folder, registry(), options, count=13, seed=7, reporter=NullReporter
    )


def test_an_honest_record_agrees_with_fresh_students(verdict):
    assert verdict.agrees
    assert verdict.fresh_students == 13
    assert [level.name for level in verdict.levels] == ["clean", "0.05", "0.10"]
    record = example().record
    assert verdict.levels[0].claimed == pytest.approx(record.aggregates.clean.mean)
    assert len(set(verdict.levels[0].fresh_values)) > 3
    assert set(verdict.levels[0].claimed_values) == set(record.aggregates.clean.values)


def test_a_seed_repeats_it_and_another_one_gives_other_students(verdict, tmp_path):
    folder = copy_of(example(), tmp_path)
    again = _call(folder, "--fresh-students", "13", "--fresh-seed", "7", "--json")
    assert again.returncode == 0
    found = json.loads(again.stdout)
    assert found["agrees"] is True
    assert [tuple(level["fresh_values"]) for level in found["levels"]] == [
        level.fresh_values for level in verdict.levels
    ]
    assert "--fresh-seed 7 repeats this" in again.stderr
    drawn = _call(folder, "--fresh-students", "13")
    # Of a hundred seeds that are drawn one refuses an honest record: that is its level.
    assert drawn.returncode in (0, 1)
    assert "p higher" in drawn.stdout
    assert ("disagrees" in drawn.stderr) == (drawn.returncode == 1)
    assert "fresh seed 7;" not in drawn.stderr


def test_a_record_above_all_fresh_students_is_refused_and_one_below_is_not(tmp_path):
    folder = copy_of(example(), tmp_path)

    def call(right):
        students = []
        for student in example().record.students:
            bits = pack_bits(torch.full((90,), right))
            results = tuple(
                found.model_copy(update={"robust": bits, "broken": 0}) for found in student.attacks
            )
            students.append(student.model_copy(update={"clean": bits, "attacks": results}))
        write_record(folder / "record.json", edited(example().record, students=tuple(students)))
        return _call(folder, "--fresh-students", "13", "--fresh-seed", "7", "--json")

    higher = call(True)
    assert higher.returncode == 1
    assert "the record disagrees: at clean" in higher.stderr
    assert "higher than fresh students" in higher.stderr
    lower = call(False)
    assert lower.returncode == 0
    words = [level["word"] for level in json.loads(lower.stdout)["levels"]]
    assert "lower than fresh students" in words


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--fresh-seed", "3"), "--fresh-seed goes with --fresh-students"),
        (("--fresh-students", "5", "--witnesses-only"), "witnesses belong to the record's own"),
        (("--fresh-students", "5", "--witnesses", "w"), "witnesses belong to the record's own"),
        (("--fresh-students", "5", "--students", "1"), "needs all"),
        (("--fresh-students", "0"), "must lie in 1..1000"),
        (("--fresh-students", "5"), "take at least 13"),
        (("--fresh-students", "13", "--fresh-seed", "0"), "is the record's own seed"),
        (("--fresh-students", "13", "--fresh-seed", "-1"), "must lie in 0.."),
    ],
)
def test_calls_that_make_no_sense_are_one_line(options, line):
    result = _call(example().folder, *options)
    assert result.returncode == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1

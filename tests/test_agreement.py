"""Whether what was found agrees with what was claimed: differences and their intervals."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdd_bench.board.pairing import outcomes
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics.means import standard_deviation
from robustdd_bench.records.record import read_record
from robustdd_bench.verification.agreement import agreement

RESULTS = Path(__file__).parents[1] / "leaderboard" / "results"
Z1, Z2 = 1.959963984540054, 2.241402727604947
"""Normal quantiles for one and for two levels."""


def bits(right: int, students: int = 1, examples: int = 400) -> np.ndarray:
    """(1,K,N): the first so many examples right."""
    found = np.zeros((1, students, examples), bool)
    found[..., :right] = True
    return found


def refused(claimed, found, same) -> bool:
    return any(not level.agrees for level in agreement(claimed, found, same))


def test_means_and_difference_are_those_of_the_bits() -> None:
    claimed = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]], bool)
    found = np.array([[[1, 0, 0, 0], [1, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 1]]], bool)
    first, second = agreement(claimed, found, [True, True])
    assert (first.claimed, first.found, first.difference) == (4 / 8, 2 / 8, 2 / 8)
    assert (second.claimed, second.found, second.difference) == (4 / 8, 5 / 8, -1 / 8)


def test_the_interval_of_the_same_weights_is_that_of_the_outcomes_that_differ() -> None:
    (found,) = agreement(bits(204), bits(200), [True])
    half = Z1 * math.sqrt(0.01 / 400)
    assert found.interval.low == pytest.approx(0.01 - half)
    assert found.interval.high == pytest.approx(0.01 + half)
    nothing = agreement(bits(200), bits(200), [True])[0].interval
    assert (nothing.low, nothing.high) == (0, 0)


def test_the_interval_of_other_weights_is_that_of_the_formula() -> None:
    claimed, found = np.repeat(bits(210, 3), 2, 0), np.repeat(bits(200, 3), 2, 0)
    level = agreement(claimed, found, [False, False, True])[1]
    differ = (20 + 2) / (800 + 4)
    other = differ / 400 + (0.25 * differ) ** 2
    half = Z2 * math.sqrt(2 * other + 0.02 / 400) / 3
    assert level.interval.high - level.difference == pytest.approx(half)


def test_the_interval_is_no_wider_than_that_of_independent_students() -> None:
    rng = np.random.default_rng(0)
    claimed, found = rng.random((2, 1, 4, 400)) < 0.5
    spread = standard_deviation([float(accuracy) for accuracy in found[0].mean(1)])
    share = (found.sum() + 2) / (found.size + 4)
    variance = max(spread**2, 1.5 * share * (1 - share) / 400)
    level = agreement(claimed, found, [False] * 4)[0]
    half = level.interval.high - level.difference
    assert half == pytest.approx(Z1 * math.sqrt(2 * variance / 4))


@pytest.mark.parametrize("right", [0, 1, 200, 400])
def test_one_student_of_other_weights_has_an_interval(right) -> None:
    interval = agreement(bits(right), bits(right), [False])[0].interval
    assert interval.low < 0 < interval.high


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    students=st.integers(1, 4),
    share=st.floats(0, 1),
    same=st.booleans(),
)
def test_no_claim_widens_the_interval_beyond_what_was_found(seed, students, share, same) -> None:
    rng = np.random.default_rng(seed)
    found = rng.random((2, students, 60)) < share
    honest = found ^ (rng.random(found.shape) < 0.01)
    wild = rng.random(found.shape) < rng.random((2, students, 1))
    for level in agreement(wild, found, [same] * students):
        half = level.interval.high - level.interval.low
        assert half <= 2 * Z2 * _most(found, students, same) + 1e-12
        assert level.interval.low <= level.difference <= level.interval.high
    for level in agreement(honest, found, [same] * students):
        assert -1 <= level.interval.low <= level.interval.high <= 1


def _most(found, students, same) -> float:
    """The largest standard deviation there can be, from what was found alone."""
    if same:
        return math.sqrt(0.02 / 60 / students)
    spread = 1.5 * 0.25 / 60
    if students > 1:
        spread = max(spread, found.mean(2).var(1, ddof=1).max())
    return math.sqrt(2 * spread / students)


def test_a_student_claimed_far_above_the_others_does_not_widen_the_interval() -> None:
    found = bits(200, 5)
    claimed = found.copy()
    claimed[0, 0, :] = True  # ten points more, on average, and all of them one student's
    assert refused(claimed, found, [False] * 5)


@pytest.mark.parametrize(("students", "right"), [(1, 230), (2, 215), (5, 205)])
def test_a_few_outcomes_turned_upward_are_refused(students, right) -> None:
    assert refused(bits(right, students), bits(200, students), [False] * students)
    assert refused(bits(right, students), bits(200, students), [True] * students)


def trainings(rng, *, students, examples=300, moved=1.0):
    """Claimed and found of the same examples; `moved` 1: students of other seeds.

    Then students differ by three points at the steepest, and in 15 % of outcomes: as published.
    """
    ease = rng.normal(size=examples)
    level = np.array([1.0, 0.0, -1.5])[:, None, None]

    def draw():
        return 0.08 * rng.normal(size=(students, 1)) + 0.35 * rng.normal(size=(students, examples))

    first = draw()
    second = math.sqrt(1 - moved**2) * first + moved * draw()
    return ease + level + first > 0, ease + level + second > 0


@pytest.mark.parametrize("moved", [1.0, 0.3, 0.03])
@pytest.mark.parametrize("students", [1, 2, 5])
def test_honest_runs_with_other_students_are_refused_about_as_rarely_as_it_says(
    students, moved
) -> None:
    rng = np.random.default_rng(0)
    wrong = sum(
        refused(*trainings(rng, students=students, moved=moved), [False] * students)
        for _ in range(300)
    )
    assert wrong / 300 <= 0.07


@pytest.mark.parametrize("students", [1, 2])
def test_published_students_of_other_seeds_are_refused_as_rarely_as_the_module_says(
    students,
) -> None:
    wrong = total = 0
    for path in sorted(RESULTS.glob("digits-*/*/*/record.json"))[::3]:
        record = read_record(path)
        found = outcomes(record, (0.0, *record.track.threat.ladder))
        for chosen in itertools.islice(itertools.permutations(range(5), 2 * students), 0, None, 3):
            one, other = chosen[:students], chosen[students:]
            wrong += refused(found[:, one], found[:, other], [False] * students)
            total += 1
    assert total > 100
    assert wrong / total <= 0.06


@pytest.mark.parametrize("same", [True, False])
def test_a_quarter_of_a_point_is_no_reason_and_more_is(same) -> None:
    found = bits(10_000, 5, 20_000)
    for right, lower in ((10_051, False), (9_949, True)):
        (level,) = agreement(bits(right, 5, 20_000), found, [same] * 5)
        assert (level.agrees, level.lower) == (False, lower)
    for right in (10_050, 9_950):
        (level,) = agreement(bits(right, 5, 20_000), found, [same] * 5)
        assert (level.agrees, level.lower) == (True, False)
        assert not level.interval.holds_zero


@pytest.mark.parametrize(
    ("claimed", "found", "same"),
    [
        (bits(3), bits(3, 2), [True]),
        (bits(3), bits(3), [True, True]),
        (bits(3, 0), bits(3, 0), []),
        (bits(3)[0], bits(3)[0], [True]),
    ],
)
def test_what_cannot_be_paired_is_refused(claimed, found, same) -> None:
    with pytest.raises(UsageError, match="one shape"):
        agreement(claimed, found, same)

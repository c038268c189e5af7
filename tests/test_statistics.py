"""Means, deviations over students and intervals over examples."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics.means import (
    aggregate,
    mean,
    standard_deviation,
    wilson_interval,
)

SHARES = st.floats(0, 1)


@given(st.lists(SHARES, min_size=2, max_size=20))
def test_mean_and_deviation_agree_with_numpy(values):
    assert mean(values) == pytest.approx(np.mean(values), abs=1e-15)
    assert standard_deviation(values) == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_the_mean_does_not_drift():
    assert mean([0.1] * 10) == 0.1
    assert standard_deviation([0.1] * 10) == 0


def test_one_student_has_no_deviation():
    assert standard_deviation([0.5]) is None
    assert aggregate([0.5], 100).std is None


@given(n=st.integers(1, 10_000), data=st.data(), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy(n, data, confidence):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k / n, n, confidence)
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


@given(share=SHARES, n=st.integers(1, 10**6))
def test_wilson_interval_holds_the_share_and_stays_in_bounds(share, n):
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1


@given(share=SHARES, n=st.integers(1, 10**5))
def test_wilson_interval_shrinks_with_more_examples(share, n):
    low, high = wilson_interval(share, n)
    lower, higher = wilson_interval(share, 4 * n)
    assert higher - lower < high - low


def test_wilson_interval_covers_the_truth_as_often_as_it_says():
    # Exact coverage: the sum of the binomial probabilities of all k whose interval holds p.
    n = 450
    for p in (0.05, 0.3, 0.5, 0.9):
        covered = 0.0
        for k in range(n + 1):
            low, high = wilson_interval(k / n, n)
            covered += stats.binom.pmf(k, n, p) * (low <= p <= high)
        assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("share", "n", "confidence"),
    [(0.5, 0, 0.95), (-0.1, 5, 0.95), (1.1, 5, 0.95), (math.nan, 5, 0.95), (0.5, 5, 1.0)],
)
def test_impossible_intervals_are_refused(share, n, confidence):
    with pytest.raises(UsageError, match="an interval needs"):
        wilson_interval(share, n, confidence)


def test_aggregate_keeps_the_raw_values():
    found = aggregate([0.5, 0.6, 0.7], 450)
    assert found.mean == pytest.approx(0.6)
    assert found.std == pytest.approx(statistics.stdev([0.5, 0.6, 0.7]))
    assert (found.low, found.high) == wilson_interval(found.mean, 450)
    assert found.values == (0.5, 0.6, 0.7)
    assert (found.n_students, found.n_examples) == (3, 450)


def test_more_students_do_not_narrow_the_interval_over_examples():
    few, many = aggregate([0.5] * 2, 100), aggregate([0.5] * 50, 100)
    assert (few.low, few.high) == (many.low, many.high)


@pytest.mark.parametrize("values", [[], [0.5, 1.2], [math.nan]])
def test_aggregate_refuses_what_is_no_accuracy(values):
    with pytest.raises(UsageError):
        aggregate(values, 10)

"""Paired differences: the interval over seeds, students and examples, and McNemar's test."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics import comparison
from robustdd_bench.evaluation.statistics.comparison import (
    Interval,
    Resamples,
    combined_p,
    compare,
    mcnemar,
)


def bits(*shape: int, share: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def naive_interval(a_SRN, b_SRN, resamples):
    """The same draws, one resample, seed, student and example at a time."""
    rng = np.random.default_rng(comparison.SEED)
    seeds, students, examples = a_SRN.shape
    values = []
    for start in range(0, resamples, comparison.CHUNK):
        size = min(comparison.CHUNK, resamples - start)
        seed = rng.integers(seeds, size=(size, max(1, seeds - 1), 1))
        student = rng.integers(students, size=(size, max(1, seeds - 1), max(1, students - 1)))
        example = rng.integers(examples, size=(size, max(1, examples - 1)))
        for i in range(size):
            total = []
            for j in range(seed.shape[1]):
                for r in student[i, j]:
                    s = seed[i, j, 0]
                    total += [int(a_SRN[s, r, n]) - int(b_SRN[s, r, n]) for n in example[i]]
            values.append(sum(total) / len(total))
    values.sort()
    cut = int(resamples * 0.025)
    return values[cut], values[resamples - 1 - cut]


@pytest.mark.parametrize("shape", [(3, 2, 9), (1, 3, 7), (2, 1, 5), (1, 1, 1)])
def test_the_interval_is_that_of_a_naive_loop(shape) -> None:
    a, b = bits(*shape), bits(*shape, seed=1)
    found = Resamples(np.stack([a, b]), 300).interval(0, 1)
    assert (found.low, found.high) == pytest.approx(naive_interval(a, b, 300), abs=1e-14)


def test_means_and_differences_are_those_of_the_bits() -> None:
    a = np.array([[[[1, 1, 0, 0], [1, 0, 0, 0]]], [[[1, 1, 1, 1], [1, 1, 1, 0]]]], bool)
    b = np.array([[[[1, 0, 0, 0], [0, 0, 0, 0]]], [[[0, 1, 1, 1], [1, 1, 1, 1]]]], bool)
    first, second = compare(a, b, 100)
    assert (first.a, first.b, first.difference) == (3 / 8, 1 / 8, 2 / 8)
    assert (second.a, second.b, second.difference) == (7 / 8, 7 / 8, 0)


def test_one_network_has_the_variance_of_its_examples() -> None:
    a, b = bits(1, 1, 400, share=0.7), bits(1, 1, 400, share=0.5, seed=1)
    found = Resamples(np.stack([a, b])).interval(0, 1)
    difference = a[0, 0].astype(float) - b[0, 0]
    half = 1.96 * difference.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(difference.mean() - half, abs=0.006)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.006)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_resamples_have_the_unbiased_variance_over_seeds(seeds) -> None:
    # Every example and student alike, so that seeds alone vary: 0, 1, 0, 1, ...
    a = np.zeros((seeds, 2, 3), bool)
    a[1::2] = True
    drawn = Resamples(np.stack([a, np.zeros_like(a)]))
    values = drawn.sums_BM[:, 0] / drawn.total
    assert values.var() == pytest.approx(a[:, 0, 0].var(ddof=1) / seeds, rel=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(150):
        ease = rng.normal(size=100)
        pair = [
            ease
            + 0.1 * rng.normal(size=(3, 1, 1))
            + 0.1 * rng.normal(size=(3, 3, 1))
            + rng.normal(size=(3, 3, 100))
            > 0
            for _ in "ab"
        ]
        held += Resamples(np.stack(pair), 400).interval(0, 1).holds_zero
    assert 0.92 <= held / 150 <= 1


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 12),
    st.floats(0, 1),
)
def test_swapping_the_two_flips_every_sign(seed, seeds, students, examples, share) -> None:
    a = bits(2, seeds, students, examples, share=share, seed=seed)
    b = bits(2, seeds, students, examples, seed=seed + 1)
    for one, other in zip(compare(a, b, 50), compare(b, a, 50), strict=True):
        assert one.difference == -other.difference
        assert one.interval == Interval(low=-other.interval.high, high=-other.interval.low)
        assert one.p == pytest.approx(other.p, abs=1e-12)
        assert (one.a, one.b) == (other.b, other.a)


def test_a_method_does_not_differ_from_itself() -> None:
    a = bits(3, 3, 2, 50)
    for found in compare(a, a.copy(), 100):
        assert found.difference == 0
        assert found.interval == Interval(low=0, high=0)
        assert found.interval.holds_zero
        assert found.p == 1


def test_a_comparison_comes_out_the_same_again_and_whoever_stands_beside_it() -> None:
    a, b, c = (bits(3, 2, 30, seed=i) for i in range(3))
    alone = Resamples(np.stack([a, b]), 500).interval(0, 1)
    assert Resamples(np.stack([a, b]), 500).interval(0, 1) == alone
    assert Resamples(np.stack([c, b, c, a]), 500).interval(3, 1) == alone


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Resamples(bits(2, 2, 2, 9), 100)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (8, 2, 2 * (1 + 10 + 45) / 1024), (3, 3, 1.0)],
)
def test_mcnemar_is_the_exact_binomial_on_discordant_examples(only_a, only_b, p) -> None:
    both, neither = 4, 6
    a = np.array([[1] * only_a + [0] * only_b + [1] * both + [0] * neither], bool)
    b = np.array([[0] * only_a + [1] * only_b + [1] * both + [0] * neither], bool)
    assert mcnemar(a, b) == pytest.approx(p, abs=1e-12)


def test_p_values_of_networks_are_combined_at_the_middle_one() -> None:
    assert combined_p([0.03]) == 0.03
    assert combined_p([0.01, 0.5]) == pytest.approx(2 * 0.01)  # the first of two
    assert combined_p([0.5, 0.01, 0.02]) == pytest.approx(1.5 * 0.02)  # the second of three
    assert combined_p([0.9, 0.8, 0.7]) == 1


def test_combined_p_values_of_dependent_tests_keep_their_level() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        shared = rng.normal()
        z = [0.8 * shared + 0.6 * rng.normal() for _ in range(5)]
        wrong += combined_p([math.erfc(abs(x) / math.sqrt(2)) for x in z]) <= 0.05
    assert wrong / 1000 <= 0.05


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 0, 1, 5), (2, 1, 1, 0)])
def test_outcomes_of_another_shape_are_refused(shape) -> None:
    with pytest.raises(UsageError, match="outcomes need the shape"):
        Resamples(np.zeros(shape, bool))


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(UsageError, match="paired outcomes need one shape"):
        compare(bits(1, 1, 1, 5), bits(1, 1, 1, 6))
    with pytest.raises(UsageError, match="paired outcomes need one shape"):
        mcnemar(bits(1, 5), bits(2, 5))
    with pytest.raises(UsageError, match="10 resamples are too few"):
        compare(bits(1, 1, 1, 5), bits(1, 1, 1, 5), 10)


def test_tables_do_without_scipy_until_outcomes_are_compared() -> None:
    code = "import sys, robustdd_bench.board.views.tables; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

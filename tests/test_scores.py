"""The field's scores: as their papers define them, with the defects that their docstrings name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics.scores import (
    drop_rate,
    gain_over_random,
    improved_robustness_ratio,
    robustness_ratio,
)

# BEARD's log: CIFAR-10, one image per class; FGSM, PGD, PGD-L2, DeepFool, C&W, AutoAttack.
CLEAN, POOL = 0.4495, [0.2451, 0.2078, 0.3372, 0.1149, 0.1368, 0.1764]


def test_beards_own_figures_come_out() -> None:
    assert 100 * robustness_ratio(CLEAN, POOL) == pytest.approx(26.34, abs=0.005)
    assert round(100 * improved_robustness_ratio(CLEAN, POOL), 1) == 59.2


def test_the_drop_rate_is_the_share_of_clean_accuracy_that_is_lost() -> None:
    assert drop_rate(0.8, 0.2) == pytest.approx(0.75)
    assert drop_rate(0.5, 0.5) == 0
    assert drop_rate(0.0, 0.0) is None


def test_a_ratio_that_is_not_defined_is_none() -> None:
    assert robustness_ratio(0.5, [0.5, 0.5]) is None
    assert improved_robustness_ratio(0.0, [0.0]) is None


@given(st.floats(0.1, 1), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_improved_ratio_is_one_minus_the_product_of_two_drop_rates(clean, shares) -> None:
    attacked = [clean * share for share in shares]
    drops = [drop_rate(clean, x) for x in (sum(attacked) / len(attacked), min(attacked))]
    expected = 1 - drops[0] * drops[1]
    assert improved_robustness_ratio(clean, attacked) == pytest.approx(expected, abs=1e-9)


def test_the_ratio_has_the_defects_that_it_is_documented_with() -> None:
    assert robustness_ratio(0.9, [0.6]) == robustness_ratio(0.9, [0.1]) == 0
    pool = [0.4, 0.6]
    assert robustness_ratio(0.9, [*pool, 0.9]) > robustness_ratio(0.9, pool)  # a weak attack
    assert robustness_ratio(0.9, [0.6, 0.6, 0.1]) > robustness_ratio(0.9, [0.6, 0.6])  # a strong
    assert robustness_ratio(0.7, pool) > robustness_ratio(0.9, pool)  # a worse network
    assert robustness_ratio(0.5, [0.4, 0.8]) > 1
    assert drop_rate(0.1, 0.1) < drop_rate(0.9, 0.6)


def test_the_gain_is_measured_from_random_selection() -> None:
    assert gain_over_random(0.6, 0.45) == pytest.approx(0.15)
    assert gain_over_random(0.6, None) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: drop_rate(95.0, 0.5),
        lambda: robustness_ratio(0.5, []),
        lambda: improved_robustness_ratio(0.5, [-0.1]),
        lambda: gain_over_random(0.5, 1.5),
    ],
)
def test_what_is_no_accuracy_is_refused(call) -> None:
    with pytest.raises(UsageError):
        call()

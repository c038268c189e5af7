"""The rule by which searches choose settings."""

import pytest

from robustdd_bench.sweeps.choice import best_setting


@pytest.mark.parametrize(
    ("clean", "robust", "expected"),
    [
        ([0.9], [0.1], 0),
        ([0.90, 0.95, 0.94], [0.70, 0.40, 0.50], 2),  # the first gives up too much clean accuracy
        ([0.93, 0.95], [0.60, 0.40], 0),  # two points below the best is allowed
        ([0.9299, 0.95], [0.60, 0.40], 1),
        ([0.93, 0.94, 0.95], [0.50, 0.50, 0.40], 1),  # of equal ones the more accurate
        ([0.94, 0.94, 0.95], [0.50, 0.50, 0.40], 0),  # then the first
        ([0.1 + 0.2, 0.32], [0.2, 0.1], 0),  # .3 and its rounding error
    ],
)
def test_the_most_robust_setting_that_costs_little_clean_accuracy(clean, robust, expected) -> None:
    assert best_setting(clean, robust, clean_within=0.02) == expected


@pytest.mark.parametrize(("clean", "robust"), [([], []), ([0.5], []), ([0.5], [0.1, 0.2])])
def test_a_choice_needs_settings(clean, robust) -> None:
    with pytest.raises(ValueError, match="a choice needs settings"):
        best_setting(clean, robust, clean_within=0.02)

"""Means, intervals, paired comparisons and the field's scores."""

from typing import TYPE_CHECKING

from robustdd_bench.moved import former

if not TYPE_CHECKING:
    __getattr__ = former(__name__, "means")

"""The former way to tell of work."""

from __future__ import annotations

import warnings

from robustdd_bench.distillers import Reporter


def tell_work(reporter: Reporter, items: int, unit: str) -> None:
    """The former name of `Reporter.work`; version 0.3 drops it."""
    text = "tell_work(reporter, ...) is now reporter.work(...); version 0.3 drops it"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    reporter.work(items, unit)

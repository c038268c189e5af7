"""The suite that `robustdd check-plugin` runs against an installed distiller, attack or executor.

Every check is a property that the benchmark relies on; each runs on its own, so that one failure
hides no other. Defaults may be slow: a class may offer `quick_config`, a classmethod (or
attribute) that gives a `Config` with fewer steps, and the checks use it instead.
"""

from __future__ import annotations

from robustdd_bench.conformance.attacks import check_attack
from robustdd_bench.conformance.distillers import check_distiller
from robustdd_bench.conformance.executors import check_executor
from robustdd_bench.conformance.findings import Finding

__all__ = ["Finding", "check_attack", "check_distiller", "check_executor"]

"""Gradient matching: DC, and DSA, which is DC with siamese augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from robustdd_bench.hookspecs import Register


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """DC and DSA."""
    register("dc", "robustdd_dc.distillers:DC", "gradient matching (Zhao et al. 2021)")
    register(
        "dsa",
        "robustdd_dc.distillers:DSA",
        "gradient matching with siamese augmentation (Zhao and Bilen 2021)",
    )

"""Robust distillation by the information bottleneck: ROME."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from robustdd_bench.hookspecs import Register


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """ROME."""
    register(
        "rome",
        "robustdd_rome.distiller:ROME",
        "matching features of adversarial images, of mosaics (Zhou et al. 2025)",
    )

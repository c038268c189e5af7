"""Distribution matching: DM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from robustdd_bench.hookspecs import Register


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """DM."""
    register("dm", "robustdd_dm.distiller:DM", "distribution matching (Zhao and Bilen 2023)")

"""Improved distribution matching: IDM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from robustdd_bench.hookspecs import Register


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """IDM."""
    register(
        "idm",
        "robustdd_idm.distiller:IDM",
        "improved distribution matching, of mosaics (Zhao et al. 2023)",
    )

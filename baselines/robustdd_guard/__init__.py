"""GUARD: SRe2L with a teacher of small curvature (Xue et al. 2025)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register GUARD."""
    register(
        "guard", "robustdd_guard.distiller:GUARD", "SRe2L with curvature regularisation (2025)"
    )

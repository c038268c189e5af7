"""DATM: difficulty-aligned trajectory matching (Guo et al. 2024)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register DATM."""
    register("datm", "robustdd_datm.distiller:DATM", "difficulty-aligned matching (ICLR 2024)")

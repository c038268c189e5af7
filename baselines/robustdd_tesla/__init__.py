"""TESLA: trajectory matching by an approximate gradient of constant memory (Cui et al. 2023)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register TESLA."""
    register(
        "tesla", "robustdd_tesla.distiller:TESLA", "matching by an approximate gradient (ICML 2023)"
    )

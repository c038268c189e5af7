"""FTD: trajectory matching on flat experts (Du et al. 2023)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register FTD."""
    register("ftd", "robustdd_ftd.distiller:FTD", "matching flat trajectories (CVPR 2023)")

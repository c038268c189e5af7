"""MTT: dataset distillation by matching training trajectories (Cazenavette et al. 2022)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register MTT."""
    register("mtt", "robustdd_mtt.distiller:MTT", "matching training trajectories (CVPR 2022)")

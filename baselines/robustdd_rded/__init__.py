"""RDED: crops of real images that a teacher is surest of (Sun et al. 2024)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register RDED."""
    register("rded", "robustdd_rded.distiller:RDED", "realistic, diverse and efficient (2024)")

"""Registers the attack `corners`."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_attacks(register: Register) -> None:
    """One attack."""
    register("corners", "robustdd_corners.attack:Corners", "the worst of n random corners; Linf")

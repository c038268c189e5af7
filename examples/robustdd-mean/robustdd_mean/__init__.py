"""Registers the method `mean`."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """One method."""
    register("mean", "robustdd_mean.distiller:Mean", "averages of random groups of images")

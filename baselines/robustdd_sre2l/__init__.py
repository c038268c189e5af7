"""SRe2L: squeeze, recover and relabel (Yin et al. 2023)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register SRe2L."""
    register("sre2l", "robustdd_sre2l.distiller:SRe2L", "squeeze, recover and relabel (2023)")

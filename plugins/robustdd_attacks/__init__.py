"""The attacks of robustdd-bench: noise, FGSM and PGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from robustdd_bench.hookspecs import Register


@hookimpl
def robustdd_register_attacks(register: Register) -> None:
    """Attacks, from the weakest to the strongest."""
    register("noise", "robustdd_attacks.noise:Noise", "random noise, the worst of several draws")
    register("fgsm", "robustdd_attacks.fgsm:FGSM", "one gradient step to the edge of the ball")
    register("pgd", "robustdd_attacks.pgd:PGD", "projected gradient ascent, best iterate kept")

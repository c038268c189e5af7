"""The attacks of robustdd-bench."""

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
    register("mim", "robustdd_attacks.mim:MIM", "PGD along a momentum of the gradients")
    register(
        "apgd-ce", "robustdd_attacks.apgd:APGDCE", "PGD that sets its own steps, cross-entropy"
    )
    register("apgd-dlr", "robustdd_attacks.apgd:APGDDLR", "APGD on the ratio of logit differences")
    register("apgd-t", "robustdd_attacks.apgd:APGDT", "APGD towards each of the likeliest classes")
    register("square", "robustdd_attacks.square:Square", "random search with squares, no gradients")
    register(
        "deepfool", "robustdd_attacks.deepfool:DeepFool", "steps to the nearest linearised boundary"
    )
    register("cw", "robustdd_attacks.cw:CW", "Carlini and Wagner's L2 attack, with a search over c")
    register("ddn", "robustdd_attacks.ddn:DDN", "decoupled direction and norm: least L2 distance")
    register("fab-t", "robustdd_attacks.fab.attack:FABT", "FAB: least distance, target by target")
    register("vmi-fgsm", "robustdd_attacks.ascents.vmi:VMIFGSM", "MIM with gradients of neighbours")
    register("jitter", "robustdd_attacks.ascents.jitter:Jitter", "PGD on noisy, rescaled outputs")
    register("cw-linf", "robustdd_attacks.ascents.margin:CWLinf", "PGD on the margin of C&W; Linf")
    register("spsa", "robustdd_attacks.spsa:SPSA", "gradients estimated from pairs of outputs")
    register("autoattack", "robustdd_attacks.autoattack:AutoAttack", "AutoAttack, by pyautoattack")
    register("transfer", "robustdd_attacks.transfer:Transfer", "PGD on the other students")
    for name, kind, base in (
        ("fgsm-targeted", "TargetedFGSM", "FGSM"),
        ("pgd-targeted", "TargetedPGD", "PGD"),
        ("mim-targeted", "TargetedMIM", "MIM"),
        ("apgd-targeted", "TargetedAPGD", "APGD-CE"),
        ("cw-targeted", "TargetedCW", "C&W in L2"),
    ):
        register(name, f"robustdd_attacks.targeted:{kind}", f"{base} towards a wrong class")

"""MAT: robust dataset distillation by matching adversarial trajectories (arXiv 2503.12069)."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register MAT, and a control."""
    register("mat", "robustdd_mat.distiller:MAT", "matching adversarial trajectories (2025)")
    register(
        "mat-robust-labels",
        "robustdd_mat.relabelled:MATRobustLabels",
        "MAT's images, labels by a robust teacher; a control",
    )

"""Controls: sets of other methods with the labels of a robust teacher."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Register the relabelled sets."""
    module = "robustdd_relabel.distillers"
    register(
        "random-robust-labels",
        f"{module}:RandomRobustLabels",
        "random images, labels by a robust teacher; a control",
    )
    register(
        "mat-robust-labels",
        f"{module}:MATRobustLabels",
        "MAT's images, labels by a robust teacher; a control",
    )

"""Real images as distilled sets: the rows that every board needs at its two ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdd_bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from robustdd_bench.hookspecs import Register


@hookimpl
def robustdd_register_distillers(register: Register) -> None:
    """Random images, the full data, k-centre, herding, k-means, and a control."""
    register("random", "robustdd_coresets.plain:Random", "random training images of each class")
    register("full", "robustdd_coresets.plain:Full", "all training images; a reference row")
    register("k-means", "robustdd_coresets.plain:KMeans", "k-means centroids in pixel space")
    register("k-centre", "robustdd_coresets.selection:KCentre", "greedy k-centre in feature space")
    register("herding", "robustdd_coresets.selection:Herding", "herding in feature space")
    register(
        "random-robust-labels",
        "robustdd_coresets.relabelled:RandomRobustLabels",
        "random images, labels by a robust teacher; a control",
    )

"""How far TESLA's gradient is from that of the matching loss: docs/studies/tesla-gradient.md.

    python scripts/study_tesla_gradient.py measure [--data-root DIR]
    python scripts/study_tesla_gradient.py draw

An expert is trained; a student starts at one of its epochs t on real images and takes N steps with
learning rate alpha towards epoch t + 2, without augmentation. Both gradients are computed in
float64 at the same place: the exact one by the adjoint recursion, TESLA's by its `direct` form.
`measure` writes the figures beside the page, `draw` its tables.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask
from robustdd_bench.files import read_json, write_json, write_text
from robustdd_bench.protocol.datasets import load_cifar10, load_digits
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds
from robustdd_bench.text.tables import markdown, marked
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert
from robustdd_bench.toolkit.trajectories.unroll import Step, adjoint_gradients, matching_loss

PAGE = Path(__file__).resolve().parents[1] / "docs" / "studies" / "tesla-gradient.md"
RESULTS = PAGE.with_suffix(".json")
AHEAD = 2
CIFAR = Preprocessing("normalise", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the gradients are compared."""

    depth: int
    width: int
    ipc: int
    rate: float
    batch: int
    starts: tuple[int, ...]
    alphas: tuple[float, ...]
    steps: tuple[int, ...]
    preprocessing: Preprocessing


PLACES = {
    "digits": Place(
        depth=2, width=32, ipc=2, rate=0.05, batch=64, starts=(0, 8), alphas=(0.03, 0.1),
        steps=(1, 5, 15, 30), preprocessing=Preprocessing("none"),
    ),
    "cifar10": Place(
        depth=3, width=32, ipc=5, rate=0.02, batch=64, starts=(0, 4), alphas=(0.02,),
        steps=(1, 5, 10, 20, 30), preprocessing=CIFAR,
    ),
}  # fmt: skip


def make_task(name: str, folder: Path, data_root: Path) -> DistillTask:
    """The training images of a place; of CIFAR-10 the first 500 of each class."""
    place, cpu = PLACES[name], torch.device("cpu")
    if name == "digits":
        data = load_digits(data_root, False)
    else:
        data = load_cifar10(data_root, False, train_per_class=500, test_per_class=1)
    images, labels = data.train.pixels(), data.train.labels
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    options = {"depth": place.depth, "width": place.width}
    network = NetworkFactory(convnet, options, shape, 10, place.preprocessing, images, cpu)
    return DistillTask(
        images=images, labels=labels, num_classes=10, ipc=place.ipc, network=network,
        preprocessing=place.preprocessing, threat=ThreatModel("Linf", 0.0), augmentation="none",
        device=cpu, seeds=Seeds(0, name, "study"), work_dir=folder, store_dir=folder,
        data_sha256="0" * 64, allow_flip=name != "digits",
    )  # fmt: skip


def measure(
    name: str, starts: Sequence[int], steps: Sequence[int], data_root: Path
) -> list[dict[str, Any]]:
    """One row for each start, alpha and N.

    Args:
        name: of `PLACES`.
        starts: epochs that students start from.
        steps: N.
        data_root: folder of CIFAR-10.
    """
    place = PLACES[name]
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(name, Path(folder), data_root)
        recipe = ExpertRecipe(
            epochs=max(starts) + AHEAD, learning_rate=place.rate, batch_size=place.batch
        )
        seeds = family_seeds(task.seeds)
        snapshots = train_expert(task, recipe, seeds, 0, NullReporter()).snapshots.double()
        layer, body = split_network(task.network(0))
        network = FlatNetwork(nn.Sequential(nn.Identity(), body.double()))
        pixels, labels = task.real_images(place.ipc, seeds.generator("initial-images"))
        images = layer(pixels).detach().double()
    rows = []
    for t, alpha, count in itertools.product(starts, place.alphas, steps):
        outer = matching_loss(snapshots[t], snapshots[t + AHEAD])
        rate = torch.tensor(alpha, dtype=torch.float64)
        arguments = (network, images, labels, rate, snapshots[t], outer, [Step()] * count)
        exact = adjoint_gradients(*arguments)
        direct = adjoint_gradients(*arguments, direct=True)
        norm = exact.images.norm()
        product = (exact.images * direct.images).sum()
        rows.append(
            {
                "place": name,
                "start": t,
                "alpha": alpha,
                "steps": count,
                "loss": float(exact.loss),
                "cosine": float(product / norm / direct.images.norm()),
                "error": float((direct.images - exact.images).norm() / norm),
                "ratio": float(direct.images.norm() / norm),
                "alpha_error": float((direct.alpha - exact.alpha).abs() / exact.alpha.abs()),
            }
        )
    return rows


def tables(results: dict[str, Any]) -> str:
    """The tables of the page."""
    parts = []
    for name in PLACES:
        rows = [row for row in results["errors"] if row["place"] == name]
        shown = [
            [
                str(row["start"]),
                f"{row['alpha']:g}",
                str(row["steps"]),
                f"{row['loss']:.3f}",
                f"{row['cosine']:.3f}",
                f"{row['error']:.1%}",
                f"{row['ratio']:.2f}",
                f"{row['alpha_error']:.1%}",
            ]
            for row in rows
        ]
        head = ["t", "alpha", "N", "loss", "cosine", "relative error", "length", "error of alpha's"]
        parts.append(f"### {name}\n\n{markdown(head, shown)}")
    return "\n\n".join(parts)


def main() -> None:
    """Measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["measure", "draw"])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    asked = parser.parse_args()
    results = read_json(RESULTS)
    if asked.what == "measure":
        torch.set_num_threads(1)
        rows = [
            measure(name, place.starts, place.steps, asked.data_root)
            for name, place in PLACES.items()
        ]
        results["errors"] = [row for each in rows for row in each]
        write_json(RESULTS, results)
    write_text(PAGE, marked(PAGE.read_text("utf-8"), "tables", tables(results), str(PAGE)))


if __name__ == "__main__":
    main()

"""The same attacks on the same tensors, here and in the packages that others wrote.

`python tests/parity/write_attack_figures.py` runs theirs, with our random numbers where they draw
any, and writes what they end at to `tests/data/attack-parity.json`; `test_attack_parity.py` runs
ours and needs none of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from attack_models import RowNetwork, make_attack, rng, task_of
from torch import Tensor, nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.seeds import ExampleGenerator

FIGURES = Path(__file__).parent / "data" / "attack-parity.json"
COUNT, CLASSES = 8, 5
LINF = ThreatModel("Linf", 0.02)
"""So small that few examples are broken: the packages change course once one is."""

STEPPED: dict[str, dict[str, object]] = {
    "vmi-fgsm": {"steps": 4, "step_size": 0.008, "neighbours": 3, "beta": 1.5},
    "jitter": {"steps": 4, "step_size": 0.008, "random_start": False},
    "spsa": {"queries": 1 + 3 * 17, "pairs": 8, "rate": 0.3, "check_every": 0},
    "pgd-targeted": {"steps": 4, "step_size": 0.008, "random_start": False},
    "pgd-targeted-least": {
        "steps": 4, "step_size": 0.008, "random_start": False, "target": "least-likely",
    },
}  # fmt: skip
"""Attacks whose last point is compared, with their settings."""


class Watched(nn.Module):
    """A network of double precision that keeps the last images it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.network = RowNetwork(16, CLASSES, seed=4)
        self.last = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        return self.network(x.double())


def inputs() -> tuple[Watched, Tensor, Tensor]:
    """The network, and images (8,1,4,4) with the classes it gives them."""
    model = Watched().eval().requires_grad_(False)
    images = 0.05 + 0.9 * torch.rand(COUNT, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    return model, images, model(images).argmax(1)


def streams() -> ExampleGenerator:
    return ExampleGenerator(0, torch.arange(COUNT))


def last_point(name: str) -> Tensor:
    """The last point (8,1,4,4) of one of our attacks, which is the last that it judges."""
    model, images, labels = inputs()
    attack = make_attack(name.removesuffix("-least"), **STEPPED[name])
    attack.perturb(task_of(model, images, labels, LINF, streams()))
    return model.last


def fab_distances(norm: str) -> Tensor:
    """The distances (8,) that our FAB-T finds; images at 0 and 1 are among the pixels."""
    model, images, labels = fab_inputs()
    found = make_attack("fab-t", steps=30).minimise(model, images, labels, streams(), norm=norm)
    return found.distance


def fab_inputs() -> tuple[Watched, Tensor, Tensor]:
    model, images, _ = inputs()
    images = (1.3 * images - 0.15).clamp(0, 1).float().double()
    return model, images, model(images).argmax(1)

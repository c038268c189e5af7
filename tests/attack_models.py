"""Small networks and problems with known answers that the tests of attacks share."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, AttackTask, Model, RoutedModel, ThreatModel
from robustdd_bench.config import build_config
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.sanity.suite_checks import Strength
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.seeds import ExampleGenerator

torch.set_num_threads(1)  # on such small tensors threads only wait for each other


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def registered_attacks() -> dict[str, type[Attack]]:
    """Every attack of the installed plugin, so that a new one is tested without an edit.

    Those that need other networks have tests of their own.
    """
    entries = collect(get_plugin_manager()).entries["attacks"].values()
    kinds = {entry.name: entry.load() for entry in entries if entry.plugin == "attacks"}
    return {name: kind for name, kind in kinds.items() if not kind.uses_sources}


def make_attack(name: str, **config: object) -> Attack:
    kind = registered_attacks()[name]
    return kind(kind.Config(**config))


def refusal(name: str, **config: object) -> str:
    """What a user is told of settings that cannot be; in Python they are refused too."""
    kind = registered_attacks()[name]
    with pytest.raises(ValueError, match="1 validation error for "):
        kind.Config(**config)
    with pytest.raises(UsageError) as caught:
        build_config(kind.Config, config, f"attack {name!r}")
    return str(caught.value).removeprefix(f"attack {name!r}: ")


def shipped_order() -> Strength:
    """The order that the shipped attacks declare."""
    return Strength.of(registered_attacks())


QUICK: dict[str, dict[str, object]] = {
    "autoattack": {"attacks": ("apgd-ce",)},
    "cw": {"steps": 15, "binary_steps": 3, "initial_c": 0.1, "learning_rate": 0.05},
    "cw-targeted": {"steps": 15, "binary_steps": 3, "initial_c": 0.1, "learning_rate": 0.05},
    "ddn": {"steps": 30},
    "fab-t": {"steps": 8, "targets": 2},
    "jitter": {"steps": 10},
    "pgd-targeted": {"steps": 10},
    "spsa": {"queries": 100, "pairs": 6},
    "vmi-fgsm": {"steps": 6, "neighbours": 1},
}
"""Settings for promises that hold with any number of steps."""


def quick_attack(name: str, **config: object) -> Attack:
    """The attack with its `quick_config`, or its defaults where it has none."""
    kind = registered_attacks()[name]
    if name in QUICK:
        return make_attack(name, **{**QUICK[name], **config})
    quick = getattr(kind, "quick_config", kind.Config)()
    return kind(dataclasses.replace(quick, **config))


class Students(RoutedModel):
    """Several networks as one model; row b belongs to network `owner[b]`."""

    def __init__(self, networks: list[nn.Module], owner: Tensor) -> None:
        self.networks, self.owner = networks, owner

    def __call__(self, images: Tensor) -> Tensor:
        assert len(images) == len(self.owner)
        answers = torch.stack([network(images) for network in self.networks])
        return answers[self.owner, torch.arange(len(images))]

    def select(self, keep: Tensor) -> Students:
        return Students(self.networks, self.owner[keep])


def task_of(
    model: Model,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    generator: ExampleGenerator | None = None,
    sources: tuple[Model, ...] = (),
) -> AttackTask:
    """What an attack gets; by default with the random numbers of seed 0."""
    generator = generator or ExampleGenerator(0, torch.arange(len(images)))
    return AttackTask(
        model=model,
        images=images,
        labels=labels,
        threat=threat,
        generator=generator,
        sources=sources,
    )


def perturb(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    remarks: list[str] | None = None,
) -> Tensor:
    """The attack on all images, batch by batch; what it says goes to `remarks`."""
    index = torch.arange(len(images)) if index is None else index
    found = [
        attack.perturb(
            task_of(model, images[i], labels[i], threat, ExampleGenerator(seed, index[i]))
        )
        for i in torch.arange(len(images)).split(batch_size or max(len(images), 1))
    ]
    if remarks is not None:
        remarks += [text for result in found for text in result.remarks]
    return torch.cat([result.images for result in found])


@dataclass(frozen=True)
class LinearProblem:
    """Images at known distances from the only boundary of a linear classifier."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    distances: Tensor
    eps: float
    """Half-way between the two middle distances: the exact robust accuracy is .500."""


def linear_problem(
    shape: tuple[int, int, int],
    norm: str,
    *,
    count: int = 16,
    nearest: float = 0.01,
    farthest: float = 0.04,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LinearProblem:
    """Classes 0 and 1 lie on the two sides of w.x + b = 0; class 2 never wins."""
    generator = rng(seed)
    size = math.prod(shape)
    w = torch.randn(size, generator=generator, dtype=torch.float64)
    w = w + 0.1 * w.sign()  # no weight so small that rounding decides its sign
    b = -0.5 * w.sum()
    dual = w.abs().sum() if norm == "Linf" else w.norm()
    distances = torch.linspace(nearest, farthest, count, dtype=torch.float64)
    distances = distances[torch.randperm(count, generator=generator)]
    labels = torch.arange(count) % 2
    side = 1.0 - 2.0 * labels
    x = 0.5 + 0.1 * (torch.rand(count, size, generator=generator, dtype=torch.float64) - 0.5)
    x = x - ((x @ w + b - side * distances * dual) / (w @ w)).unsqueeze(1) * w
    assert x.min() > farthest
    assert x.max() < 1 - farthest
    linear = nn.Linear(size, 3, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([w / 2, -w / 2, torch.zeros(size)]))
        linear.bias.copy_(torch.stack([b / 2, -b / 2, torch.tensor(-1e3)]))
    model = nn.Sequential(nn.Flatten(), linear).to(dtype).eval()
    eps = float(distances.sort().values[count // 2 - 1 : count // 2 + 1].mean())
    return LinearProblem(model, x.view(count, *shape).to(dtype), labels, distances, eps)


class RowNetwork(nn.Module):
    """A smooth two-layer network whose sums run within one example only.

    Its result for an example is the same bit for bit in every batch, which matrix products do not
    promise.
    """

    def __init__(self, size: int, classes: int, *, width: int = 12, seed: int = 0) -> None:
        super().__init__()
        generator = rng(seed)
        first = torch.randn(width, size, generator=generator, dtype=torch.float64)
        second = torch.randn(classes, width, generator=generator, dtype=torch.float64)
        self.first = nn.Parameter(first * 3 / math.sqrt(size))
        self.second = nn.Parameter(second)

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1) - 0.5).unsqueeze(1) * self.first).sum(2).tanh()
        return (hidden.unsqueeze(1) * self.second).sum(2)


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    images: Tensor
    labels: Tensor


@cache
def trained_network() -> Trained:
    """A small convolutional network trained on the digits, and 120 test images; float32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12 * 16, 10),
        )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = rng(1)
    for _ in range(150):
        batch = torch.randint(120, len(labels), (128,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return Trained(model.eval(), images[:120], labels[:120])

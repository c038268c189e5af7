"""Experts, students and attacks at the size of CIFAR-10: the naive loop against compiled kernels.

Images are random, 3x32x32, ten classes; the network is a ConvNet-3. Both sides start from the same
weights, see the same batches in the same order and take the same number of steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from attack_workloads import attack
from torch import Tensor, nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistilledSet, DistillTask
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.pooling import HalvingPool
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import Adversary, attack_batch
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert

Workload = Callable[[str], Callable[[], object]]
CPU = torch.device("cpu")
BATCH = 256
EPOCHS = 6
EPS = 1 / 255


def data(count: int) -> tuple[Tensor, Tensor]:
    """Random images in [0,1] with a faint pattern for each class, and their labels."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    patterns = torch.rand(10, 3, 32, 32, generator=source)
    noise = torch.rand(count, 3, 32, 32, generator=source)
    return 0.8 * noise + 0.2 * patterns[labels], labels


def factory(width: int) -> NetworkFactory:
    """Networks behind a normalisation."""
    layer = Preprocessing("normalise", (0.5,) * 3, (0.25,) * 3)
    images = torch.zeros(1, 3, 32, 32)
    return NetworkFactory(convnet, {"width": width}, (3, 32, 32), 10, layer, images, CPU)


def with_torchs_pooling(network: nn.Module) -> None:
    """Give a ConvNet the pooling that other people's code has."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, HalvingPool):
                setattr(parent, name, nn.AvgPool2d(2))


def experts(width: int, flavour: str) -> Workload:
    """Training of one expert, six epochs of two batches of 256.

    Variants: "loop" (module and torch's SGD; PGD by the same few lines), "compiled".
    """

    def prepare(variant: str) -> Callable[[], object]:
        images, labels = data(2 * BATCH)
        networks, folder = factory(width), Path(tempfile.gettempdir())
        recipe = ExpertRecipe(
            epochs=EPOCHS, learning_rate=0.01, batch_size=BATCH, flavour=flavour, eps=EPS,
            attack_steps=3, attack_step_size=EPS / 2,
        )  # fmt: skip
        seeds = family_seeds(Seeds(0, "benchmark"))
        task = DistillTask(
            images=images, labels=labels, num_classes=10, ipc=10, network=networks,
            preprocessing=Preprocessing("none"), threat=ThreatModel("Linf", EPS),
            augmentation="none", device=CPU, seeds=Seeds(0, "benchmark"), work_dir=folder,
            store_dir=folder, data_sha256="", allow_flip=False, compile=True,
        )  # fmt: skip
        adversary = Adversary(threat=task.threat, steps=3, step_size=EPS / 2)

        def loop(epochs: int) -> list[Tensor]:
            network = networks(seeds.seed("expert-init", 0))
            with_torchs_pooling(network)
            optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
            order = seeds.generator("expert-order", 0)
            noise = seeds.generator("expert-noise", 0)
            snapshots = []
            for _ in range(epochs):
                for batch in torch.randperm(len(images), generator=order).split(BATCH):
                    x, y = images[batch], labels[batch]
                    if flavour == "pgd":
                        x = attack_batch("pgd", network, x, y, adversary, noise)
                    optimiser.zero_grad()
                    F.cross_entropy(network(x), y).backward()
                    optimiser.step()
                snapshots.append(nn.utils.parameters_to_vector(network.parameters()).detach())
            with torch.no_grad():
                network(images)
            return snapshots

        if variant == "loop":
            loop(1)
            return lambda: loop(EPOCHS)
        train_expert(task, recipe, seeds, 0, NullReporter())
        return lambda: train_expert(task, recipe, seeds, 0, NullReporter())

    return prepare


def students(width: int) -> Workload:
    """Training of one student on 100 images, 30 steps.

    Variants: "loop" (module and torch's SGD), "compiled".
    """

    def prepare(variant: str) -> Callable[[], object]:
        images, labels = data(100)
        networks, spec = factory(width), StudentSpec(epochs=30, batch_size=BATCH)
        distilled = DistilledSet(images=images, labels=labels)

        def compiled() -> object:
            return train_student(
                networks(0), distilled, spec, Seeds(0, "benchmark"), 0, flip=False,
                reporter=NullReporter(), compile=True,
            )  # fmt: skip

        def loop() -> object:
            network = networks(0)
            with_torchs_pooling(network)
            optimiser = torch.optim.SGD(
                network.parameters(), lr=spec.learning_rate, momentum=spec.momentum,
                weight_decay=spec.weight_decay,
            )  # fmt: skip
            order = torch.Generator().manual_seed(0)
            for step in range(spec.epochs):
                if step == int(spec.drop_at * spec.epochs):
                    optimiser.param_groups[0]["lr"] *= spec.drop_factor
                batch = torch.randperm(len(images), generator=order)
                optimiser.zero_grad()
                F.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimiser.step()
            with torch.no_grad():
                network(images)
            return network

        work = compiled if variant == "compiled" else loop
        work()
        return work

    return prepare


def attacks(width: int, name: str, **settings: object) -> Workload:
    """One attack on one student, on 100 images at an eps where about half of them fall.

    Variants: "eager" and "compiled": what the attack holds.
    """

    def prepare(variant: str) -> Callable[[], float]:
        images, labels = data(100)
        distilled = DistilledSet(images=images, labels=labels)
        student = train_student(
            factory(width)(0), distilled, StudentSpec(epochs=30), Seeds(0, "benchmark"), 0,
            flip=False, reporter=NullReporter(), compile=False,
        ).network  # fmt: skip
        tool, right = attack(name, **settings), torch.ones(100, dtype=torch.bool)
        threat = ThreatModel("Linf", 0.02)

        def work() -> float:
            found = attack_student(
                student, images, labels, tool, threat, 0, BATCH, right,
                compile=variant == "compiled",
            )  # fmt: skip
            return float(found.robust.double().mean())

        return work

    return prepare


BENCHMARKS: dict[str, tuple[Workload, str, str, str]] = (
    {
        f"experts-{flavour}-w{width}": (
            experts(width, flavour),
            "loop",
            "compiled",
            f"expert, {what}, ConvNet-3 W={width}, batch 256 of 3x32x32, 12 steps",
        )
        for width, flavour, what in (
            (64, "natural", "natural"),
            (64, "pgd", "PGD-AT with 3 steps"),
            (128, "natural", "natural"),
        )
    }
    | {
        f"student-w{width}": (
            students(width),
            "loop",
            "compiled",
            f"student, ConvNet-3 W={width}, 100 images of 3x32x32, 30 steps",
        )
        for width in (64, 128)
    }
    | {
        "pgd20-w64": (
            attacks(64, "pgd"),
            "eager",
            "compiled",
            "PGD-20 on a ConvNet-3 W=64, 100 images of 3x32x32",
        ),
        "square-w64": (
            attacks(64, "square", queries=200),
            "eager",
            "compiled",
            "Square, 200 queries, on a ConvNet-3 W=64, 100 images of 3x32x32",
        ),
    }
)

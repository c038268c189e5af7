"""What is measured: each workload has a naive form and ours, which do the same work.

A workload is a function of a variant's name that prepares everything and returns a callable; only
the call is measured. Shapes: W width of the ConvNet-3, B distilled images, N student steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from attack_workloads import pgd, suite, targeted
from compiled_workloads import BENCHMARKS as COMPILED
from compiled_workloads import with_torchs_pooling
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask
from robustdd_bench.protocol.datasets import load_digits
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.pooling import HalvingPool
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds, isolated_rng
from robustdd_bench.toolkit.dsa import FAMILIES, Augmentation, AugmentationParams, apply
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert
from robustdd_bench.toolkit.trajectories.unroll import (
    Step,
    adjoint_gradients,
    matching_loss,
    unrolled_gradients,
)

Workload = Callable[[str], Callable[[], object]]


def engine(width: int, images: int, steps: int) -> Workload:
    """Gradient of the matching loss for images and alpha, 3x32x32, ConvNet-3.

    Variants: "unrolled" (one graph of all steps), "adjoint" (the engine), both with PyTorch's own
    second derivative of group norm: "unrolled-groupnorm", which is what the field's code does (with
    PyTorch's pooling, too), and "groupnorm"; "compiled", the engine with compiled kernels;
    "returned" and "kept", the engine with two settings of the allocator.
    """

    def prepare(variant: str) -> Callable[[], object]:
        source = torch.Generator().manual_seed(0)
        with isolated_rng(0):
            body = convnet((3, 32, 32), 10, width=width)
        compiled = variant == "compiled"
        network = FlatNetwork(nn.Sequential(nn.Identity(), body), compile=compiled)
        if variant.endswith("groupnorm"):
            network.body = body
        if variant == "unrolled-groupnorm":
            with_torchs_pooling(body)
        x = torch.randn(images, 3, 32, 32, generator=source)
        y = torch.arange(images) % 10
        start = network.theta()
        target = start + 0.01 * torch.randn(start.shape, generator=source)
        function = unrolled_gradients if variant.startswith("unrolled") else adjoint_gradients
        taken = [Step()] * steps
        alpha, outer = torch.tensor(0.01), matching_loss(start, target)
        # Libraries set up their memory on first use; that is not the method's.
        function(network, x[:2], y[:2], alpha, start, outer, [Step()])
        return lambda: function(network, x, y, alpha, start, outer, taken)

    return prepare


def _digits_task(folder: Path, width: int, *, compile: bool) -> DistillTask:
    train = load_digits(folder, False).train
    spec, device = Preprocessing("normalise", (0.3,), (0.38,)), torch.device("cpu")
    options = {"depth": 2, "width": width}
    return DistillTask(
        images=train.images,
        labels=train.labels,
        num_classes=10,
        ipc=10,
        network=NetworkFactory(convnet, options, (1, 8, 8), 10, spec, train.images, device),
        preprocessing=spec,
        threat=ThreatModel("Linf", 0.1),
        augmentation="none",
        device=device,
        seeds=Seeds(0, "benchmark"),
        work_dir=folder,
        store_dir=folder,
        data_sha256="",
        allow_flip=False,
        compile=compile,
    )


def experts(width: int, epochs: int, batch: int) -> Workload:
    """Natural training of one expert on the digits, a snapshot an epoch.

    Variants: "dataloader" (module, torch's SGD, a shuffling DataLoader), "trainer" (ours), and
    "compiled" (ours with compiled kernels).
    """

    def prepare(variant: str) -> Callable[[], object]:
        folder = Path(tempfile.gettempdir())
        task = _digits_task(folder, width, compile=variant == "compiled")

        def trainer(epochs: int) -> Tensor:
            recipe = ExpertRecipe(epochs=epochs, learning_rate=0.05, batch_size=batch)
            seeds = family_seeds(task.seeds)
            return train_expert(task, recipe, seeds, 0, NullReporter()).snapshots

        def dataloader(epochs: int) -> list[Tensor]:
            network = task.network(0)
            with_torchs_pooling(network)
            optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
            data = TensorDataset(task.images, task.labels)
            order = torch.Generator().manual_seed(0)
            loader = DataLoader(data, batch, shuffle=True, generator=order)
            snapshots = []
            for _ in range(epochs):
                for x, y in loader:
                    optimiser.zero_grad()
                    F.cross_entropy(network(x), y).backward()
                    optimiser.step()
                snapshots.append(nn.utils.parameters_to_vector(network.parameters()).detach())
            with torch.no_grad():
                network(task.images)
            return snapshots

        train = dataloader if variant == "dataloader" else trainer
        train(1)  # torch's optimisers import much on first use: two seconds that are not training
        return lambda: train(epochs)

    return prepare


def training(width: int, steps: int) -> Workload:
    """Plain training steps of a ConvNet-3 by PyTorch's SGD, batches of 256 of 3x32x32.

    Variants: "returned" and "kept", the same steps; measure.py sets the allocator by the name.
    """

    def prepare(variant: str) -> Callable[[], object]:
        source = torch.Generator().manual_seed(0)
        with isolated_rng(0):
            network = convnet((3, 32, 32), 10, width=width)
        x = torch.randn(256, 3, 32, 32, generator=source)
        y = torch.arange(256) % 10
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01)

        def train(steps: int) -> Tensor:
            for _ in range(steps):
                optimiser.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimiser.step()
            return nn.utils.parameters_to_vector(network.parameters()).detach()

        train(1)  # torch's optimisers import much on first use
        return lambda: train(steps)

    return prepare


def augmentation(images: int) -> Workload:
    """Every family of DSA once on a batch of 3x32x32, each image with parameters of its own.

    Variants: "loop" (image by image), "batch" (ours).
    """

    def prepare(variant: str) -> Callable[[], object]:
        source = torch.Generator().manual_seed(0)
        x = torch.randn(images, 3, 32, 32, generator=source)
        drawn = [Augmentation((family,)).draw(images, (32, 32), source) for family in FAMILIES]
        for parameters in drawn:  # the first use of a kernel is not the method's
            values = parameters.values[:2]
            apply(x[:2], AugmentationParams(parameters.family, values))
        if variant == "batch":
            return lambda: [apply(x, parameters) for parameters in drawn]

        def loop() -> list[Tensor]:
            return [
                torch.cat(
                    [
                        apply(x[i : i + 1], AugmentationParams(p.family, p.values[i : i + 1]))
                        for i in range(images)
                    ]
                )
                for p in drawn
            ]

        return loop

    return prepare


def pooling(images: int, repeats: int) -> Workload:
    """Average pooling of two by two pixels, forward and backward, of images of 32x8x8.

    Variants: "torch" (`nn.AvgPool2d`), "ours".
    """

    def prepare(variant: str) -> Callable[[], object]:
        source = torch.Generator().manual_seed(0)
        x = torch.randn(images, 32, 8, 8, generator=source).requires_grad_()
        cotangent = torch.randn(images, 32, 4, 4, generator=source)
        pool = HalvingPool() if variant == "ours" else nn.AvgPool2d(2)

        def both(repeats: int) -> Tensor:
            for _ in range(repeats):
                (gradient,) = torch.autograd.grad(pool(x), x, cotangent)
            return gradient

        both(1)
        return lambda: both(repeats)

    return prepare


BENCHMARKS: dict[str, tuple[Workload, str, str, str]] = {
    "engine-w64-b50-n30": (engine(64, 50, 30), "unrolled", "adjoint", "ConvNet-3 W=64, B=50, N=30"),
    "engine-w128-b10-n20": (
        engine(128, 10, 20),
        "unrolled",
        "adjoint",
        "ConvNet-3 W=128, B=10, N=20",
    ),
    "field-w64-b50-n30": (
        engine(64, 50, 30),
        "unrolled-groupnorm",
        "compiled",
        "ConvNet-3 W=64, B=50, N=30, the naive form with PyTorch's group norm",
    ),
    "field-w128-b10-n20": (
        engine(128, 10, 20),
        "unrolled-groupnorm",
        "compiled",
        "ConvNet-3 W=128, B=10, N=20, the naive form with PyTorch's group norm",
    ),
    "norm-w64-b50-n5": (engine(64, 50, 5), "groupnorm", "adjoint", "ConvNet-3 W=64, B=50, N=5"),
    "memory-train-w64": (
        training(64, 12),
        "returned",
        "kept",
        "training ConvNet-3 W=64, 12 batches of 256, freed memory returned or kept",
    ),
    "memory-engine-w64": (
        engine(64, 50, 10),
        "returned",
        "kept",
        "ConvNet-3 W=64, B=50, N=10, freed memory returned or kept",
    ),
    "experts-digits": (
        experts(32, 10, 64),
        "dataloader",
        "compiled",
        "digits, ConvNet-2 W=32, 10 epochs, batch 64",
    ),
    "pgd20-359": (pgd(359), "loop", "vmap", "PGD-20 on 5 students, 359 digits"),
    "pgd20-16": (pgd(16), "loop", "vmap", "PGD-20 on 5 students, 16 digits"),
    "suite-digits": (
        suite,
        "everything",
        "survivors",
        "suite of digits-ipc10, 5 students, 120 digits",
    ),
    "apgd-digits": (
        targeted,
        "pyautoattack",
        "compiled",
        "APGD-CE and APGD-T on 5 students, 100 digits, against pyautoattack",
    ),
    "pool-digits": (
        pooling(359, 200),
        "torch",
        "ours",
        "pooling of 359 images of 32x8x8, 200 times",
    ),
    "dsa-b256": (augmentation(256), "loop", "batch", "six families, 256 images of 3x32x32"),
    **COMPILED,
}
"""By name: the workload, its naive variant, ours, and a description."""

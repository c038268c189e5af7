"""Experts on CIFAR-10: a plain DataLoader loop against resident data, captured steps, arithmetic.

Natural training, PGD-10 and single-step adversarial training at 2/255, ConvNet-3 of width 128,
batch 256, without DSA and then with it. A repetition is three epochs of 12,800 images with their
snapshots. Then experts are trained for some epochs of all images in each arithmetic from the same
seeds: their accuracy, clean and under PGD-10, says what the fast ones cost.

Also measured: several experts at once under torch.vmap, and channels-last images.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from bench import ARITHMETIC, Bench, Found, parse
from task import DSA, accuracy, splits, task
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistillTask
from robustdd_bench.protocol.datasets import Split
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.toolkit.adversarial import Adversary, adversarial_loss, attack_batch
from robustdd_bench.toolkit.fast.capture import availability
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.fast.precision import precision
from robustdd_bench.toolkit.operations import count_operations
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert

EPS = 2 / 255
SOME = 12_800
"""Training images of an epoch that is timed: 50 steps."""
FLAVOURS = {
    "natural": {},
    "pgd": {"eps": EPS, "attack_steps": 10, "attack_step_size": EPS / 4},
    "fast": {"eps": EPS, "attack_steps": 1, "attack_step_size": 1.25 * EPS},
}


class Epochs(NullReporter):
    """Notes when each epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []
        self.notes: list[str] = []

    def metrics(self, step: int, **values: float | Tensor) -> None:
        """An epoch ended; its snapshot is on the CPU."""
        self.at.append(time.perf_counter())

    def note(self, text: str) -> None:
        """Keep what is told of captured steps."""
        self.notes.append(text)


@contextmanager
def capture(mode: str) -> Iterator[None]:
    """Captured steps "auto" or "off"."""
    before = os.environ.get("ROBUSTDD_CAPTURE")
    os.environ["ROBUSTDD_CAPTURE"] = mode
    try:
        yield
    finally:
        os.environ.pop("ROBUSTDD_CAPTURE")
        if before is not None:
            os.environ["ROBUSTDD_CAPTURE"] = before


def recipe(flavour: str, epochs: int, augmentation: str, batch: int) -> ExpertRecipe:
    """The recipe of MTT's experts, with MAT's average."""
    return ExpertRecipe(
        epochs=epochs,
        learning_rate=0.01,
        batch_size=batch,
        augmentation=augmentation,
        flavour=flavour,
        ema=0.99,
        **cast(dict[str, Any], FLAVOURS[flavour]),
    )


def ours(
    work: DistillTask, made: ExpertRecipe, mode: str, arithmetic: str
) -> Callable[[], dict[str, float]]:
    """`train_expert`; the seconds of the epochs after the first are kept as a value.

    A call trains `made.epochs` epochs, so that capturing is paid once as in a run.
    """
    exact = dataclasses.replace(made, precision=arithmetic)

    def call() -> dict[str, float]:
        reporter = Epochs()
        with capture(mode):
            expert = train_expert(work, exact, family_seeds(work.seeds), 0, reporter)
            captured = availability(work.device).active and not reporter.notes
        steady = [b - a for a, b in zip(reporter.at, reporter.at[1:], strict=False)]
        values = {"train_accuracy": expert.accuracy, "captured": float(captured)}
        if steady:
            values["epoch_s"] = sorted(steady)[len(steady) // 2]
        return values

    return call


def plain(work: DistillTask, train: Split, made: ExpertRecipe, workers: int) -> Callable[[], None]:
    """The loop that anyone would write: module, torch's SGD, a shuffling DataLoader."""
    data = TensorDataset(train.pixels(), train.labels)
    device = work.device

    def call() -> None:
        network = work.network(0)
        optimiser = torch.optim.SGD(network.parameters(), lr=made.learning_rate)
        average = [p.detach().clone() for p in network.parameters()]
        adversary = Adversary(
            threat=ThreatModel("Linf", made.eps),
            steps=made.attack_steps,
            step_size=made.attack_step_size,
        )
        noise = torch.Generator(device=device).manual_seed(0)
        loader = DataLoader(
            data,
            made.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
        )
        for _ in range(made.epochs):
            for pixels, classes in loader:
                x = pixels.to(device, non_blocking=True)
                y = classes.to(device, non_blocking=True)
                if made.flavour != "natural":
                    moved = attack_batch("pgd", network, x, y, adversary, noise)
                else:
                    moved = x
                optimiser.zero_grad()
                F.cross_entropy(network(moved), y).backward()
                optimiser.step()
                with torch.no_grad():
                    for kept, weight in zip(average, network.parameters(), strict=True):
                        kept.mul_(made.ema).add_(weight, alpha=1 - made.ema)

    return call


def stacked(work: DistillTask, made: ExpertRecipe, experts: int) -> Callable[[], None]:
    """An epoch of several experts at once: one batched pass over their weights.

    Natural training on batches of their own; the network has PyTorch's own group norm, since
    vmap does not know ours.
    """
    module = work.network(0)
    assert isinstance(module, nn.Sequential)
    network = FlatNetwork(module)
    network.body = module[1]
    thetas = torch.stack([FlatNetwork(work.network(k)).theta() for k in range(experts)])

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(network(theta, x), y)

    gradients = torch.vmap(torch.func.grad(loss))

    def call() -> None:
        now = thetas.clone()
        source = torch.Generator().manual_seed(0)
        for _ in range(made.epochs):
            orders = torch.stack(
                [torch.randperm(len(work.images), generator=source) for _ in range(experts)]
            ).to(work.device)
            for where in orders.split(made.batch_size, dim=1):
                x = work.pixels(where.flatten()).view(*where.shape, *work.images.shape[1:])
                now = now - made.learning_rate * gradients(now, x, work.labels[where])

    return call


class ChannelsLast(nn.Module):
    """Images with their channels innermost, behind the preprocessing."""

    def __init__(self, preprocess: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then lay out anew."""
        out: Tensor = self.preprocess(x).contiguous(memory_format=torch.channels_last)
        return out


def operations(work: DistillTask, made: ExpertRecipe) -> float:
    """Floating-point operations of an epoch."""
    network = FlatNetwork(work.network(0))
    theta = network.theta().requires_grad_()
    adversary = Adversary(
        threat=ThreatModel("Linf", made.eps),
        steps=made.attack_steps,
        step_size=made.attack_step_size,
    )
    index = torch.arange(min(16, len(work.images)), device=work.device)
    noise = torch.Generator(device=work.device).manual_seed(0)

    def step() -> None:
        loss = adversarial_loss(
            made.flavour, network, theta, work.pixels(index), work.labels[index],
            augment=None, adversary=adversary, beta=0.0, generator=noise,
        )  # fmt: skip
        torch.autograd.grad(loss, theta)

    return count_operations(step) / len(index) * len(work.images)


def robust(network: FlatNetwork, theta: Tensor, split: Split, device: torch.device) -> float:
    """Accuracy on a split under PGD-10."""
    adversary = Adversary(threat=ThreatModel("Linf", EPS), steps=10, step_size=EPS / 4)
    noise = torch.Generator(device=device).manual_seed(1)
    hits = torch.zeros((), device=device)
    for x, y in zip(split.images.split(500), split.labels.split(500), strict=True):
        pixels, labels = x.to(device).float().div(255), y.to(device)
        moved = attack_batch("pgd", lambda p: network(theta, p), pixels, labels, adversary, noise)
        with torch.no_grad():
            hits += (network(theta, moved).argmax(1) == labels).sum()
    return float(hits) / len(split.images)


def quality(
    work: DistillTask, test: Split, flavour: str, epochs: int, arithmetic: str, batch: int
) -> Callable[[], dict[str, float]]:
    """Train an expert and judge its last snapshot in float32."""

    def call() -> dict[str, float]:
        made = dataclasses.replace(recipe(flavour, epochs, DSA, batch), precision=arithmetic)
        expert = train_expert(work, made, family_seeds(work.seeds), 0, NullReporter())
        network = FlatNetwork(work.network(0))
        theta = expert.snapshots[-1].to(work.device)
        small = Split(test.images[:2000], test.labels[:2000])
        with precision("float32", work.device):
            return {
                "clean": accuracy(lambda x: network(theta, x), test, work.device),
                "pgd10": robust(network, theta, small, work.device),
                "loss": expert.losses[-1],
            }

    return call


def main(arguments: list[str] | None = None) -> None:
    """Measure everything."""
    options = parse(__doc__, arguments)
    bench = Bench("experts", options)
    tiny, device = bench.tiny, bench.device
    train, test = splits(options.data_root, tiny, options.train_files)
    some = Split(train.images[:SOME], train.labels[:SOME])
    folder = Path(tempfile.mkdtemp())
    work, all_work = task(some, device, tiny, folder), task(train, device, tiny, folder)

    def channels_last(seed: int) -> nn.Module:
        network = work.network(seed)
        assert isinstance(network, nn.Sequential)
        return nn.Sequential(ChannelsLast(network[0]), network[1])

    last = dataclasses.replace(work, network=channels_last)
    batch, epochs = (8, 2) if tiny else (256, 3)
    items = epochs * len(some)
    for augmentation in ("none", DSA):
        for flavour in FLAVOURS:
            made = recipe(flavour, epochs, augmentation, batch)
            name = f"{flavour}{'' if augmentation == 'none' else ', DSA'}"
            count = epochs * operations(work, made)

            def measure(
                variant: str,
                call: Callable[[], Found],
                arithmetic: str = "tf32",
                *,
                name: str = name,
                count: float = count,
                items: int = items,
            ) -> None:
                bench.measure(
                    name, variant, call, items=items, unit="images", repeats=3, warm_up=0,
                    arithmetic=arithmetic, operations=count,
                )  # fmt: skip

            plainly = augmentation == "none"
            if plainly and flavour != "fast":
                measure("dataloader", plain(work, some, made, 0))
            if plainly and flavour == "natural":
                measure("dataloader, 2 workers", plain(work, some, made, 2))
            measure("resident", ours(work, made, "off", "tf32"))
            measure("captured", ours(work, made, "auto", "tf32"))
            fast = dataclasses.replace(work, compile=True)
            measure("captured, compiled", ours(fast, made, "auto", "tf32"))
            if plainly and flavour != "fast":
                measure("captured, float32", ours(work, made, "auto", "float32"), "float32")
                measure("captured, bfloat16", ours(work, made, "auto", "bfloat16"), "bfloat16")
                measure("captured, channels last", ours(last, made, "auto", "tf32"))
            if plainly and flavour == "natural":
                for experts in (2,) if tiny else (2, 5):
                    measure(
                        f"vmap of {experts}", stacked(work, made, experts),
                        count=experts * count, items=experts * items,
                    )  # fmt: skip
        if augmentation != "none":
            continue
        for flavour, length in (("natural", 1 if tiny else 10), ("pgd", 1 if tiny else 5)):
            for arithmetic in ARITHMETIC:
                bench.measure(
                    f"quality of {flavour}", arithmetic,
                    quality(all_work, test, flavour, length, arithmetic, batch),
                    items=length * len(train), unit="images", repeats=1, warm_up=0,
                    arithmetic=arithmetic,
                )  # fmt: skip
    bench.summary()


if __name__ == "__main__":
    main(sys.argv[1:])

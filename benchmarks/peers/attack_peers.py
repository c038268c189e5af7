"""Attacks: torchattacks' PGD and pyautoattack's suite against ours, on students we trained.

The students are ConvNets trained for seconds on images that can be learned: a blob whose place and
colour depend on the class, and noise. They are trained once for all processes of a comparison. eps
is such that about half of the examples are broken.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from comparison import Call, Comparison, Package, Prepared, Values, agreement
from peer_results import Agreement
from torch import Tensor, nn
from variants import PEER, way

from robustdd_bench.attacks import Attack, AttackTask, ThreatModel
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import ExampleGenerator, Seeds, isolated_rng
from robustdd_bench.toolkit.fast.blocks import compiled as compile_network

TORCHATTACKS = Package(
    name="torchattacks", url="https://github.com/Harry24k/adversarial-attacks-pytorch"
)
PYAUTOATTACK = Package(name="pyautoattack", url="https://pypi.org/project/pyautoattack/")
CLASSES, STUDENTS, BATCH, STEPS = 10, 5, 512, 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Images and networks."""

    shape: tuple[int, int, int]
    depth: int
    width: int
    epochs: int
    noise: float
    eps: float
    steps: int = 100
    """Of APGD; 100 is AutoAttack's number."""
    targets: int = 9
    """Of targeted APGD; 9 is AutoAttack's number."""
    queries: int = 1000
    """Of Square; AutoAttack has 5000."""


DIGITS = Size(
    shape=(1, 8, 8), depth=2, width=32, epochs=150, noise=0.1, eps=0.02, targets=3, queries=400
)
CIFAR = Size(
    shape=(3, 32, 32), depth=3, width=64, epochs=20, noise=0.25, eps=0.042,
    steps=50, targets=3, queries=300,
)  # fmt: skip
TINY = Size(shape=(1, 8, 8), depth=1, width=4, epochs=10, noise=0.2, eps=0.01, steps=5, queries=20)


def blobs(size: Size, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count,C,H,W) in [0,1] with their classes: a blob of the class, moved a little."""
    channels, height, width = size.shape
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    turn = 2 * torch.pi * labels / CLASSES
    jitter = torch.randn(2, count, generator=source) * 0.04
    down = height * (0.5 + 0.28 * turn.sin() + jitter[0])
    right = width * (0.5 + 0.28 * turn.cos() + jitter[1])
    rows = torch.arange(height).view(1, -1, 1) - down.view(-1, 1, 1)
    columns = torch.arange(width).view(1, 1, -1) - right.view(-1, 1, 1)
    bump = (-(rows.square() + columns.square()) / (0.16 * height) ** 2).exp()
    phase = torch.arange(channels) * 2 * torch.pi / 3
    colour = 0.7 + 0.3 * (turn.view(-1, 1) * 3 + phase).cos()
    noise = size.noise * torch.randn(count, *size.shape, generator=source)
    images = 0.25 + 0.5 * bump.unsqueeze(1) * colour.view(-1, channels, 1, 1) + noise
    return images.clamp(0, 1), labels


def students(call: Call, size: Size) -> list[nn.Module]:
    """Five trained students, out of the comparison's store where it has them."""
    networks = []
    for r in range(STUDENTS):
        with isolated_rng(r):
            body = convnet(size.shape, CLASSES, depth=size.depth, width=size.width)
        networks.append(nn.Sequential(nn.Identity(), body))
    path = call.store / "students.pt"
    if path.exists():
        for network, weights in zip(networks, torch.load(path), strict=True):
            network.load_state_dict(weights)
            network.eval().requires_grad_(False)
        return list(networks)
    images, labels = blobs(size, 100, 1)
    recipe = StudentSpec(epochs=size.epochs, learning_rate=0.02, augmentation="none")
    for r, network in enumerate(networks):
        train_student(
            network, DistilledSet(images=images, labels=labels), recipe,
            Seeds(0, "benchmark", "peers"), r, flip=False, reporter=NullReporter(),
        )  # fmt: skip
    torch.save([network.state_dict() for network in networks], path)
    return list(networks)


def attack(name: str, **settings: object) -> Attack:
    """A registered attack."""
    kind = collect(get_plugin_manager()).get("attacks", name).load()
    made: Attack = kind(kind.Config(**settings))
    return made


class Watched(nn.Module):
    """A student that keeps the last images it was shown."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.last = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,K)."""
        self.last = images.detach()
        logits: Tensor = self.student(images)
        return logits


def _pgd(size: Size, examples: int) -> Callable[[Call], Prepared]:
    """PGD-20 from the images themselves, of a quarter of eps a step, student by student."""

    def prepare(call: Call) -> Prepared:
        used = TINY if call.tiny else size
        trained = students(call, used)
        held = [compile_network(n) for n in trained] if way(call.side).compile else trained
        networks = [Watched(network).eval() for network in held]
        images, labels = blobs(used, 20 if call.tiny else examples, 2)
        step = used.eps / 4
        run: Callable[[nn.Module, Tensor, Tensor], Tensor]
        if call.side == PEER:
            import torchattacks  # type: ignore[import-not-found]

            def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                tool = torchattacks.PGD(
                    network, eps=used.eps, alpha=step, steps=STEPS, random_start=False
                )
                found: Tensor = tool(x, y)
                return found
        else:
            tool = attack("pgd", steps=STEPS, step_size=step, random_start=False)
            threat = ThreatModel("Linf", used.eps)

            def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                noise = ExampleGenerator(0, torch.arange(len(x)))
                task = AttackTask(model=network, images=x, labels=y, threat=threat, generator=noise)
                return tool.perturb(task).images

        run(networks[0], images[:2], labels[:2])

        def values(found: list[Tensor]) -> Values:
            ours = call.side != PEER
            kept = [
                classified(network.student, x, labels, BATCH)
                for network, x in zip(networks, found, strict=True)
            ]
            # Ours returns the best point it saw; the last it looked at is what the peer returns.
            last = [n.last for n in networks] if ours else found
            clean = [classified(n.student, images, labels, BATCH) for n in networks]
            return {
                "robust": torch.stack(kept),
                "last": torch.stack(last),
                "clean": torch.stack(clean),
                "end": torch.stack(
                    [
                        classified(n.student, x, labels, BATCH)
                        for n, x in zip(networks, last, strict=True)
                    ]
                ),
            }

        return Prepared(work=lambda: [run(n, images, labels) for n in networks], values=values)

    return prepare


def _agree_pgd(side: str, theirs: list[Values], ours: list[Values]) -> list[Agreement]:
    a, b = ours[0], theirs[0]
    # Other sums round otherwise, and the sign of a gradient near zero makes more of it.
    pairs, pixels = (0.02 * b["robust"].numel(), None) if way(side).compile else (0.0, 0.01)
    moved = ((a["last"] - b["last"]).abs() > 1e-6).double().mean()
    return [
        agreement(
            side, "robust accuracy, ours at its last iterate, difference",
            abs(_share(a["end"]) - _share(b["robust"])), pairs / b["robust"].numel(),
        ),
        agreement(
            side, "(student, example) pairs with another outcome at the last iterate",
            float((a["end"] != b["robust"]).sum()), pairs,
        ),
        agreement(
            side, "share of pixels of the last iterate that differ by more than 1e-6",
            float(moved), pixels,
        ),
        agreement(
            side, "robust accuracy, ours at its best iterate, difference",
            abs(_share(a["robust"]) - _share(b["robust"])),
        ),
    ]  # fmt: skip


def _share(bits: Tensor) -> float:
    return float(bits.double().mean())


def _suite(size: Size, examples: int) -> Callable[[Call], Prepared]:
    """APGD-CE, APGD-T and Square, each on what is left."""

    def prepare(call: Call) -> Prepared:
        used = TINY if call.tiny else size
        networks = students(call, used)
        images, labels = blobs(used, 6 if call.tiny else examples, 2)
        if call.side == PEER:
            work = _their_suite(networks, images, labels, used, call.seed)
        else:
            compiled = way(call.side).compile
            work = _our_suite(networks, images, labels, used, call.seed, compiled)

        def values(robust: list[Tensor]) -> Values:
            clean = [classified(n, images, labels, BATCH) for n in networks]
            return {"robust": torch.stack(robust), "clean": torch.stack(clean)}

        return Prepared(work=work, values=values)

    return prepare


def _their_suite(
    networks: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    size: Size,
    seed: int,
) -> Callable[[], list[Tensor]]:
    import pyautoattack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)

    def one(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        suite = pyautoattack.AutoAttack(
            network, norm="Linf", eps=size.eps, version="standard", seed=seed, device=x.device
        )
        suite.verbose = False
        suite.attacks_to_run = ["apgd-ce", "apgd-t", "square"]
        suite.apgd.n_iter = suite.apgd_targeted.n_iter = size.steps
        suite.apgd_targeted.n_target_classes = size.targets
        suite.square.n_queries = size.queries
        found, _ = suite.run_standard_evaluation(x, y, batch_size=BATCH)
        return classified(network, x, y, BATCH) & classified(network, found, y, BATCH)

    def work() -> list[Tensor]:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [one(network, images, labels) for network in networks]

    return work


def _our_suite(
    networks: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    size: Size,
    seed: int,
    compiled: bool,
) -> Callable[[], list[Tensor]]:
    tools = [
        attack("apgd-ce", steps=size.steps),
        attack("apgd-t", steps=size.steps, targets=size.targets),
        attack("square", queries=size.queries),
    ]
    threat = ThreatModel("Linf", size.eps)
    seeds = [seed * STUDENTS + r for r in range(len(networks))]

    def work() -> list[Tensor]:
        left = [classified(network, images, labels, BATCH) for network in networks]
        for tool in tools:
            left = [
                attack_student(
                    network, images, labels, tool, threat, key, BATCH, right, compile=compiled
                ).robust
                for network, key, right in zip(networks, seeds, left, strict=True)
            ]
        return left

    return work


def _agree_suite(side: str, theirs: list[Values], ours: list[Values]) -> list[Agreement]:
    a, b = ([_share(v["robust"]) for v in values] for values in (ours, theirs))
    noise = max(max(found) - min(found) for found in (a, b))
    pairs = theirs[0]["robust"].numel()
    other = max(
        float((x["robust"] != y["robust"]).sum()) for x, y in zip(ours, theirs, strict=True)
    )
    return [
        agreement(
            side, "robust accuracy, difference of the means over seeds; at most the range over "
            "seeds and one (student, example) pair",
            abs(fmean(a) - fmean(b)), noise + 1 / pairs,
        ),
        agreement(side, f"(student, example) pairs of {pairs} with another outcome", other),
    ]  # fmt: skip


def _facts(side: str, values: list[Values]) -> dict[str, float]:
    robust = [_share(v["robust"]) for v in values]
    found: dict[str, float] = {f"clean accuracy, {side}": _share(values[0]["clean"])}
    found[f"robust accuracy, {side}"] = fmean(robust)
    if len(robust) > 1:
        found[f"robust accuracy, {side}, range over seeds"] = max(robust) - min(robust)
    return found


def _comparison(peer: Package, text: str, driven: str, prepare: Any, seeds: int) -> Comparison:
    return Comparison(
        peer=peer,
        text=text,
        driven=driven,
        prepare=prepare,
        agreement=_agree_pgd if peer is TORCHATTACKS else _agree_suite,
        seeds=seeds,
        facts=_facts,
    )


def _suite_comparison(network: str, size: Size, examples: int) -> Comparison:
    image = "x".join(map(str, size.shape))
    return _comparison(
        PYAUTOATTACK,
        f"APGD-CE ({size.steps} steps), APGD-T ({size.targets} targets), Square ({size.queries} "
        f"queries) on 5 students, {network}, {examples} images of {image}",
        "AutoAttack of version standard with the same three attacks and numbers, student by "
        "student; FAB is left out",
        _suite(size, examples),
        3,
    )


COMPARISONS = {
    "torchattacks-pgd-digits": _comparison(
        TORCHATTACKS,
        "PGD-20 without random start on 5 students, ConvNet-2 W=32, 200 images of 1x8x8",
        "PGD, student by student",
        _pgd(DIGITS, 200),
        1,
    ),
    "torchattacks-pgd-cifar": _comparison(
        TORCHATTACKS,
        "PGD-20 without random start on 5 students, ConvNet-3 W=64, 20 images of 3x32x32",
        "PGD, student by student",
        _pgd(CIFAR, 20),
        1,
    ),
    "pyautoattack-digits": _suite_comparison("ConvNet-2 W=32", DIGITS, 100),
    "pyautoattack-cifar": _suite_comparison("ConvNet-3 W=64", CIFAR, 10),
}

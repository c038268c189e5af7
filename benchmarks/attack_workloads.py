"""Attacks on R = 5 students: one by one or together, all examples or survivors, ours or AutoAttack.

The students are ConvNet-2 of width 32, trained for a second each on ten images a class of the
digits; they are attacked at eps .10 (Linf), where about half of the examples fall. Every workload
returns the robust accuracy it found, the mean over students.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.outcomes import standing
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import AttackOutcome, attack_student, attack_students
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.evaluation.together import Layout
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.datasets import load_digits
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import StudentSpec, load_track
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds

THREAT = ThreatModel("Linf", 0.1)
BATCH = 512
Work = Callable[[], float]


@cache
def students(count: int = 5) -> tuple[list[nn.Module], Tensor, Tensor]:
    """The students, and the test images with their labels."""
    data = load_digits(Path(), False, test_fraction=0.2, split_seed=0)
    pixels, labels = data.train.pixels(), data.train.labels
    chosen = torch.cat([(labels == k).nonzero().flatten()[:10] for k in range(10)])
    distilled = DistilledSet(images=pixels[chosen], labels=labels[chosen])
    factory = NetworkFactory(
        convnet,
        {"depth": 2, "width": 32},
        (1, 8, 8),
        10,
        Preprocessing("none"),
        pixels,
        torch.device("cpu"),
    )
    seeds = Seeds(0, "benchmark", "attacks")
    networks = [
        train_student(
            factory(r),
            distilled,
            StudentSpec(epochs=100),
            seeds,
            r,
            flip=False,
            reporter=NullReporter(),
        ).network
        for r in range(count)
    ]
    return networks, data.test.pixels(), data.test.labels


def attack(name: str, **settings: object) -> Attack:
    """A registered attack."""
    kind = collect(get_plugin_manager()).get("attacks", name).load()
    made: Attack = kind(kind.Config(**settings))
    return made


def pgd(examples: int) -> Callable[[str], Work]:
    """PGD-20 on the first examples. Variants: "loop" over students, "vmap": stacked."""

    def prepare(variant: str) -> Work:
        networks, images, labels = students()
        images, labels = images[:examples], labels[:examples]
        right = [classified(network, images, labels, BATCH) for network in networks]
        tool = attack("pgd")
        layout: Layout = "vmap" if variant == "vmap" else "loop"

        def work() -> float:
            if variant == "loop":
                found = [
                    attack_student(network, images, labels, tool, THREAT, r, BATCH, right[r])
                    for r, network in enumerate(networks)
                ]
            else:
                found = attack_students(
                    networks, images, labels, tool, THREAT, range(5), BATCH, right, layout=layout
                )
            return _accuracy(found)

        return work

    return prepare


def suite(variant: str) -> Work:
    """The suite of digits-ipc10 on every eps of its ladder, 120 examples.

    Variants: "everything": each attack on all examples that are right without one; "survivors":
    as the track has it. Robust accuracy is the worst case at the headline.
    """
    networks, images, labels = students()
    images, labels = images[:120], labels[:120]
    track = load_track("digits-ipc10", collect(get_plugin_manager()))
    right = [classified(network, images, labels, BATCH) for network in networks]

    def work() -> float:
        left = []
        for r, network in enumerate(networks):
            found: list[AttackOutcome] = []
            for spec in track.attacks:
                tool = attack(spec.name, **spec.config)
                for eps in track.levels(spec):
                    pruned = variant == "survivors" and spec.on == "survivors"
                    before = standing(right[r], found, eps) if pruned else right[r]
                    found.append(
                        attack_student(
                            network, images, labels, tool,
                            dataclasses.replace(THREAT, eps=eps), r, BATCH, before,
                        )
                    )  # fmt: skip
            left.append(float(standing(right[r], found, track.threat.headline).double().mean()))
        return sum(left) / len(left)

    return work


def targeted(variant: str) -> Work:
    """APGD-CE, then APGD-T with nine targets on what is left: 100 examples, 100 steps.

    Variants: "pyautoattack": its own, student by student; "ours"; and "compiled", ours on copies
    that compiled kernels compute.
    """
    networks, images, labels = students()
    images, labels = images[:100], labels[:100]
    right = [classified(network, images, labels, BATCH) for network in networks]
    tools = (
        [attack("autoattack", attacks=("apgd-ce", "apgd-t"))]
        if variant == "pyautoattack"
        else [attack("apgd-ce"), attack("apgd-t")]
    )

    def work() -> float:
        left = list(right)
        for tool in tools:
            found = [
                attack_student(
                    network, images, labels, tool, THREAT, r, BATCH, left[r],
                    compile=variant == "compiled",
                )
                for r, network in enumerate(networks)
            ]  # fmt: skip
            left = [outcome.robust for outcome in found]
        return _accuracy(found)

    return work


def _accuracy(outcomes: Sequence[AttackOutcome]) -> float:
    return sum(float(found.robust.double().mean()) for found in outcomes) / len(outcomes)

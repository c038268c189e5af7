"""Students and attacks on CIFAR-10: one by one, stacked, captured.

Five students of ConvNet-3, width 128, on ten random images a class: 500 steps of their training
with and without captured steps, then PGD-20, APGD-CE and AutoAttack, student by student and all
five in one batched pass. A repetition of an attack takes the test images named in the workload. The
robust accuracies stand beside the times: both ways must find the same.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from bench import Bench, parse
from experts import capture
from task import DSA, splits, task
from torch import nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.distillers import DistilledSet, DistillTask
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student, attack_students
from robustdd_bench.evaluation.students import TrainedStudent, train_student
from robustdd_bench.evaluation.together import Layout
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.datasets import Split
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds

THREAT = ThreatModel("Linf", 2 / 255)
SEEDS = Seeds(0, "benchmark", "students")


def train(
    work: DistillTask, distilled: DistilledSet, spec: StudentSpec, count: int
) -> list[TrainedStudent]:
    """So many students, one after the other."""
    return [
        train_student(
            work.network(r), distilled, spec, SEEDS, r, flip=True, reporter=NullReporter()
        )
        for r in range(count)
    ]


def attacked(
    networks: list[nn.Module], test: Split, tool: Attack, batch: int, layout: Layout | None
) -> Callable[[], dict[str, float]]:
    """An attack on every student: one by one (None), or together in a layout."""
    images, labels = test.pixels(), test.labels
    right = [classified(network, images, labels, batch) for network in networks]

    def call() -> dict[str, float]:
        if layout is None:
            found = [
                attack_student(network, images, labels, tool, THREAT, r, batch, right[r])
                for r, network in enumerate(networks)
            ]
        else:
            seeds = range(len(networks))
            found = attack_students(
                networks, images, labels, tool, THREAT, seeds, batch, right, layout=layout
            )
        left = [float(outcome.robust.double().mean()) for outcome in found]
        return {"robust_accuracy": sum(left) / len(left)}

    return call


def main(arguments: list[str] | None = None) -> None:
    """Measure everything."""
    options = parse(__doc__, arguments)
    bench = Bench("students", options)
    tiny, device = bench.tiny, bench.device
    train_split, test = splits(options.data_root, tiny, options.train_files)
    work = task(train_split, device, tiny, Path(tempfile.mkdtemp()))
    images, labels = work.real_images(work.ipc or 1, torch.Generator().manual_seed(0))
    distilled = DistilledSet(images=images.cpu(), labels=labels.cpu())
    count, steps = (2, 4) if tiny else (5, 500)
    spec = StudentSpec(
        epochs=steps, max_steps=2000, batch_size=256, learning_rate=0.01, augmentation=DSA
    )
    for mode, name in (("off", "eager"), ("auto", "captured")):

        def training(mode: str = mode) -> dict[str, float]:
            with capture(mode):
                made = train(work, distilled, spec, count)
            return {"final_loss": sum(student.final_loss for student in made) / count}

        bench.measure(
            "training of students", name, training,
            items=count * steps, unit="steps", repeats=3, warm_up=0,
        )  # fmt: skip
    whole = spec.model_copy(update={"epochs": 4 if tiny else 1000})
    networks = [student.network for student in train(work, distilled, whole, count)]
    registry = collect(get_plugin_manager())
    sizes = {"pgd": (2000, 3), "apgd-ce": (2000, 3), "autoattack": (500, 1)}
    settings = {"pgd": {"steps": 2 if tiny else 20}, "apgd-ce": {"steps": 3 if tiny else 50}}
    for name, (size, repeats) in sizes.items():
        if tiny and name == "autoattack":
            continue  # half a minute even for ten images
        kind = registry.get("attacks", name).load()
        tool = kind(kind.Config(**settings.get(name, {})))
        some = Split(test.images[:size], test.labels[:size]).to(device)
        for batch in (5,) if tiny else (512, 2000):
            ways: dict[str, Layout | None] = {"one by one": None}
            if getattr(tool, "routed", False):
                ways |= {"together, looped": "loop", "together, stacked": "vmap"}
            for way, layout in ways.items():
                bench.measure(
                    f"{name}, {len(some)} images, batch {batch}", way,
                    attacked(networks, some, tool, batch, layout),
                    items=count * len(some), unit="images", repeats=repeats,
                    warm_up=int(repeats > 1),
                )  # fmt: skip
    bench.summary()


if __name__ == "__main__":
    main(sys.argv[1:])

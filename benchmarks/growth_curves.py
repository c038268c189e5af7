"""What grows: each curve is a function of one number that prepares work of that size.

Shapes: W width of the ConvNet-3, B distilled images, N student steps, K classes, R students. Images
are 3x32x32 where nothing else is said.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from attack_workloads import BATCH, THREAT, attack, students
from robustdd_dc.distillers import DC
from robustdd_dm.distiller import DM
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import Distiller, DistillTask
from robustdd_bench.evaluation.outcomes import standing
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import AttackOutcome, attack_students
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds, isolated_rng
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.engine import AdjointEngine
from robustdd_bench.toolkit.trajectories.unroll import Step, matching_loss

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A cost over one quantity."""

    title: str
    quantity: str
    workload: str
    x: tuple[int, ...]
    prepare: Callable[[int], Work]
    expected: float
    reason: str


def engine(*, width: int = 32, classes: int = 10, ipc: int = 1, steps: int = 2) -> Work:
    """The gradient of trajectory matching in images and learning rate."""
    source = torch.Generator().manual_seed(0)
    with isolated_rng(0):
        body = convnet((3, 32, 32), classes, width=width)
    network = FlatNetwork(nn.Sequential(nn.Identity(), body))
    labels = torch.arange(classes).repeat_interleave(ipc)
    images = torch.randn(len(labels), 3, 32, 32, generator=source)
    start = network.theta()
    target = start + 0.01 * torch.randn(start.shape, generator=source)
    tool, outer = AdjointEngine(network), matching_loss(start, target)
    taken, alpha = [Step()] * steps, torch.tensor(0.01)
    return lambda: tool.gradients(images, labels, alpha, start, outer, taken)


def _task(folder: Path, classes: int, ipc: int) -> DistillTask:
    source, device = torch.Generator().manual_seed(0), torch.device("cpu")
    labels = torch.arange(classes).repeat_interleave(40)
    images = torch.rand(len(labels), 3, 32, 32, generator=source)
    spec = Preprocessing("none")
    return DistillTask(
        images=images,
        labels=labels,
        num_classes=classes,
        ipc=ipc,
        network=NetworkFactory(convnet, {"width": 32}, (3, 32, 32), classes, spec, images, device),
        preprocessing=spec,
        threat=ThreatModel("Linf", 0.1),
        augmentation="none",
        device=device,
        seeds=Seeds(0, "benchmark"),
        work_dir=folder,
        store_dir=folder,
        data_sha256="",
    )


def _distilled(method: Distiller, classes: int) -> Work:
    """A short distillation in a folder of its own, which nothing is resumed from."""

    def work() -> object:
        folder = Path(tempfile.mkdtemp())
        try:
            return method.distill(_task(folder, classes, 2), NullReporter())
        finally:
            shutil.rmtree(folder)

    return work


def dc(classes: int) -> Work:
    """Gradient matching: one image step on one network."""
    return _distilled(DC(DC.Config(iterations=1, outer=1, inner=1, batch_real=32)), classes)


def dm(classes: int) -> Work:
    """Distribution matching: two image steps."""
    return _distilled(DM(DM.Config(iterations=2, batch_real=32)), classes)


def many_students(count: int) -> Work:
    """PGD-20, then APGD-CE on survivors, on R students of the digits."""
    networks, images, labels = students(count)
    images, labels = images[:100], labels[:100]
    tools = [attack("pgd"), attack("apgd-ce")]

    def work() -> object:
        left = [classified(network, images, labels, BATCH) for network in networks]
        for tool in tools:
            found = attack_students(
                networks, images, labels, tool, THREAT, range(count), BATCH, left
            )
            left = [outcome.robust for outcome in found]
        return left

    return work


def many_levels(count: int) -> Work:
    """PGD-20 and, on survivors, APGD-CE and APGD-DLR, at eps levels spread evenly over 0 to .2."""
    networks, images, labels = students(2)
    images, labels = images[:100], labels[:100]
    tools = {"pgd": attack("pgd"), "ce": attack("apgd-ce"), "dlr": attack("apgd-dlr")}
    levels = [0.2 * (i + 0.5) / count for i in range(count)]
    right = [classified(network, images, labels, BATCH) for network in networks]

    def work() -> object:
        found: list[list[AttackOutcome]] = [[] for _ in networks]
        for name, tool in tools.items():
            for eps in levels:
                pruned = name != "pgd"
                before = [
                    standing(bits, outcomes, eps) if pruned else bits
                    for bits, outcomes in zip(right, found, strict=True)
                ]
                threat = dataclasses.replace(THREAT, eps=eps)
                made = attack_students(
                    networks, images, labels, tool, threat, range(2), BATCH, before
                )
                for outcomes, outcome in zip(found, made, strict=True):
                    outcomes.append(outcome)
        return found

    return work


CURVES: Mapping[str, Curve] = {
    "engine-steps": Curve(
        title="engine: student steps N",
        quantity="student steps",
        workload="exact gradient of trajectory matching, ConvNet-3 W=32, B=10",
        x=(2, 4, 8, 16, 32),
        prepare=lambda x: engine(steps=x),
        expected=1.0,
        reason="one step forward and one back for each student step",
    ),
    "engine-ipc": Curve(
        title="engine: images per class",
        quantity="images per class",
        workload="exact gradient of trajectory matching, ConvNet-3 W=32, K=10, N=2",
        x=(1, 2, 4, 8, 16),
        prepare=lambda x: engine(ipc=x),
        expected=1.0,
        reason="every student step sees all images",
    ),
    "engine-width": Curve(
        title="engine: width W",
        quantity="width",
        workload="exact gradient of trajectory matching, ConvNet-3, B=10, N=2",
        x=(16, 32, 64, 128, 256),
        prepare=lambda x: engine(width=x),
        expected=2.0,
        reason="channels in times channels out; norm, ReLU and pooling grow as W alone",
    ),
    "engine-classes": Curve(
        title="engine: classes K",
        quantity="classes",
        workload="exact gradient of trajectory matching, ConvNet-3 W=32, 2 images per class, N=2",
        x=(5, 10, 20, 40, 80),
        prepare=lambda x: engine(classes=x, ipc=2),
        expected=1.0,
        reason="images grow as K; the last layer grows as K too and is small beside the others",
    ),
    "dc-classes": Curve(
        title="DC: classes K",
        quantity="classes",
        workload="one image step of gradient matching, ConvNet-3 W=32, 2 images per class, "
        "32 real images of each class",
        x=(2, 4, 8, 16, 32),
        prepare=dc,
        expected=1.0,
        reason="classes are matched one after the other",
    ),
    "dm-classes": Curve(
        title="DM: classes K",
        quantity="classes",
        workload="two image steps of distribution matching, ConvNet-3 W=32, 2 images per class, "
        "32 real images of each class",
        x=(4, 8, 16, 32, 64),
        prepare=dm,
        expected=1.0,
        reason="every class passes once",
    ),
    "suite-students": Curve(
        title="attacks: students R",
        quantity="students",
        workload="PGD-20, and APGD-CE on survivors, ConvNet-2 W=32, 100 digits, eps .10",
        x=(1, 2, 4, 8),
        prepare=many_students,
        expected=1.0,
        reason="each student is attacked once",
    ),
    "suite-levels": Curve(
        title="attacks: eps levels",
        quantity="eps levels",
        workload="PGD-20, APGD-CE and APGD-DLR on survivors, 2 students, ConvNet-2 W=32, "
        "100 digits, levels spread over 0 to .2",
        x=(1, 2, 4, 8),
        prepare=many_levels,
        expected=1.0,
        reason="each level is attacked once, and what is broken at one eps is not tried at larger",
    ),
}
"""By name."""

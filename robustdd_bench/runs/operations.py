"""Floating-point operations of a run, stage by stage, before it is run; and seconds from them.

Methods tell their own (`robustdd_bench.toolkit.operations`); students and attacks are multiplied
from the track. Seconds are operations by the rate at which this machine trains the track's network,
measured in a fraction of a second. What computes nothing is left out: launches, memory, the fit of
ZCA, sanity checks, files. Batches of another size and other steps sustain other rates, so it is an
estimate within a factor of about two.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.config import recorded_config
from robustdd_bench.errors import RobustDDError, RunFailedError
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.students import total_steps
from robustdd_bench.guard import blame
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.imagenet.classes import SUBSETS
from robustdd_bench.protocol.networks import NetworkFactory
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import NetworkSpec
from robustdd_bench.records.means import device_here
from robustdd_bench.records.plan import Plan, method_entry
from robustdd_bench.runs.work import threads
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.operations import (
    CountedDistiller,
    Facts,
    ImageCosts,
    MakingOperations,
    network_costs,
)

SIZES = {
    "cifar10": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": ((3, 32, 32), 100, 50_000, 10_000),
    "mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "fashion-mnist": ((1, 28, 28), 10, 60_000, 10_000),
    "svhn": ((3, 32, 32), 10, 73_257, 26_032),
    "digits": ((1, 8, 8), 10, 1438, 359),
    "tiny-imagenet": ((3, 64, 64), 200, 100_000, 10_000),
    **dict.fromkeys(SUBSETS, ((3, 128, 128), 10, 13_000, 500)),  # at most so many to train on
}
"""Shape of an image, classes, training and test images: data need not be there for an estimate."""
RIGHT, STANDING = 0.5, 0.25
"""Shares of the test images that are expected to be right without an attack, and still after the
first attacks: what weak and strong sets lie around."""
MEASURE_S = 0.2
COUNTED_SIDE = 8
"""Pixels a side of the image on which the passes of an attack are counted."""
MEASURED_IMAGES = {"cpu": 16, "cuda": 512}


class UnknownOperationsError(RobustDDError):
    """The operations of a run cannot be told."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the stages of a plan depend on."""

    plan: Plan
    shape: tuple[int, ...]
    test: int
    """Images that students are judged on."""
    making: MakingOperations
    images: int
    """That students train on."""
    student: ImageCosts
    """A student behind the set's preprocessing."""
    experts: int = 0
    """How many there are; 0 of methods without."""


def run_facts(plan: Plan, registry: Registry) -> RunFacts:
    """Everything that is counted once for a plan.

    Raises:
        UnknownOperationsError: the size of the track's data is not known, or the method does not
            tell.
        PluginError: code of a plugin fails.
    """
    track = plan.track
    shape, classes, train, test = _size(plan)
    entry = method_entry(registry, plan.method)
    kind = entry.load()
    with blame(plan.plugin, f"method {plan.method!r}"):
        config = recorded_config(kind.Config, plan.config, plan.method)
        distiller = kind(config)
    own = getattr(config, "preprocessing", "track")
    if not isinstance(distiller, CountedDistiller):
        raise UnknownOperationsError(f"method {plan.method!r} does not tell its operations")
    pixels = torch.Size(shape).numel()
    zca = (track.preprocessing.kind if own == "track" else own) == "zca"
    layer = 2.0 * pixels**2 if zca else 0.0
    plain = _costs(registry, track.network, shape, classes, twice=True)
    student = plain
    if track.student_network is not None:
        student = _costs(registry, track.student_network, shape, classes, twice=False)
    images = train if getattr(kind, "reference", False) else classes * track.data.ipc
    facts = Facts(
        classes=classes,
        ipc=track.data.ipc,
        images=images,
        pixels=pixels,
        train=train,
        threat=ThreatModel(track.threat.norm, track.threat.headline),
        augmentation=track.students.augmentation,
        input=plain,
        network=plain.behind(layer),
        shape=tuple(shape),
        build=functools.partial(_network, registry, tuple(shape), classes),
    )
    with blame(plan.plugin, f"method {plan.method!r}, operations"):
        making = distiller.operations(facts)
    experts = getattr(config, "experts", 0)
    trained = images * getattr(config, "mosaic", 1) ** 2
    return RunFacts(plan, shape, test, making, trained, student.behind(layer), experts)


def _size(plan: Plan) -> tuple[tuple[int, ...], int, int, int]:
    """Shape of an image, classes, images that are trained on and that are judged on."""
    data = plan.track.data
    if data.dataset not in SIZES:
        raise UnknownOperationsError(f"the size of dataset {data.dataset!r} is not known here")
    shape, classes, train, test = SIZES[data.dataset]
    if "test_fraction" in data.options:
        whole = train + test
        test = round(whole * data.options["test_fraction"])
        train = whole - test
    if "train_per_class" in data.options:
        train = classes * data.options["train_per_class"]
    if "test_per_class" in data.options:
        test = classes * data.options["test_per_class"]
    if plan.split == "validation":
        held = round(train * data.validation_fraction)
        train, test = train - held, held
    return shape, classes, train, test


def _costs(
    registry: Registry, spec: NetworkSpec, shape: Sequence[int], classes: int, *, twice: bool
) -> ImageCosts:
    build = registry.get("networks", spec.name).load()
    return network_costs(build, spec.options, shape, classes, twice=twice)


def _network(
    registry: Registry, shape: tuple[int, ...], classes: int, name: str, options: Mapping[str, Any]
) -> nn.Module:
    """A registered network without preprocessing, on the CPU."""
    entry = registry.get("networks", name)
    none, images = Preprocessing("none"), torch.zeros(1, *shape)
    cpu = torch.device("cpu")
    factory = NetworkFactory(entry.load(), options, shape, classes, none, images, cpu, entry.plugin)
    return split_network(factory(0))[1]


def student_operations(it: RunFacts) -> float:
    """Operations of one student: its training, and its accuracies on set and test split."""
    spec = it.plan.track.students
    batches = -(-it.images // spec.batch_size)
    seen = total_steps(spec, it.images) * it.images / batches
    kind = spec.adversarial
    step = it.student.weights if kind is None else it.student.step(kind.flavour, kind.steps)
    return seen * step + (it.images + it.test) * it.student.forward


class _Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tally: list[int]) -> Tensor:
        ctx.tally = tally
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        ctx.tally[1] += 1
        return cotangents[0], None


class _Tally(list[int]):
    """A count that copies of a model share: attacks are lent a copy."""

    def __deepcopy__(self, memo: object) -> _Tally:
        return self


class _Fortress(nn.Module):
    """A model that no attack breaks: class 0 leads by far; it counts passes and gradients."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.tally = _Tally([0, 0])
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.layer = nn.Linear(pixels, classes)
        with torch.no_grad():
            self.layer.bias[0] += 100.0

    def forward(self, x: Tensor) -> Tensor:
        self.tally[0] += len(x)
        logits: Tensor = self.layer(_Tick.apply(x, self.tally).flatten(1))
        return logits


@functools.lru_cache(maxsize=256)
def passes(kind: Any, config: str, channels: int, classes: int, norm: str) -> list[int]:
    """Forward passes and gradients for one image that an attack never breaks.

    The attack states them, or they are counted; they depend on no size of the image, so it is a
    small one.

    Args:
        kind: the attack's class.
        config: its configuration, as JSON.
        channels: of the image.
        classes: K.
        norm: of the threat model.
    """
    attack = kind(recorded_config(kind.Config, json.loads(config), "the attack"))
    stated = attack.passes(classes)
    return list(stated) if stated is not None else counted_passes(attack, channels, classes, norm)


def counted_passes(attack: Attack, channels: int, classes: int, norm: str) -> list[int]:
    """What `passes` gives, counted, whatever the attack states."""
    shape = (channels, COUNTED_SIDE, COUNTED_SIDE)
    model = _Fortress(torch.Size(shape).numel(), classes).eval().requires_grad_(False)
    image, label = torch.full((1, *shape), 0.5), torch.zeros(1, dtype=torch.int64)
    threat = ThreatModel("Linf" if norm == "Linf" else "L2", 2 / 255)
    right = torch.ones(1, dtype=torch.bool)
    outcome = attack_student(model, image, label, attack, threat, 0, 1, right)
    return [outcome.forwards, model.tally[1]]


def attack_operations(
    it: RunFacts, registry: Registry, right: float = RIGHT, standing: float = STANDING
) -> dict[str, float]:
    """Operations of each attack of the suite on one student.

    Args:
        it: the plan.
        registry: where attacks are.
        right: share of the test images that are right without an attack.
        standing: share of them that attacks on survivors find standing; with 1 for both, they are
            bounded from above.
    """
    track = it.plan.track
    classes = SIZES[track.data.dataset][1]
    planned = {attack.name: attack for attack in it.plan.attacks}
    backward = it.student.pixels - it.student.forward
    found = {}
    for spec in track.attacks:
        entry, one = registry.get("attacks", spec.name), planned[spec.name]
        with blame(entry.plugin, f"attack {spec.name!r}"):
            kind = entry.load()
            told = min(classes, kind.counted_classes or classes)
            forwards, gradients = passes(
                kind, json.dumps(dict(one.config)), it.shape[0], told, track.threat.norm
            )
        each = (forwards + 1) * it.student.forward + gradients * backward  # 1: judged again
        share = right if spec.on == "all" else min(right, standing)
        images = share * min(spec.examples or it.test, it.test)
        found[spec.name] = len(track.levels(spec)) * images * each
    return found


def operations(
    plan: Plan, registry: Registry, right: float = RIGHT, standing: float = STANDING
) -> dict[str, float]:
    """Operations of each stage of a plan but the sanity checks.

    Raises:
        UnknownOperationsError: they cannot be told.
        PluginError: code of a plugin fails.
    """
    it, count = run_facts(plan, registry), plan.track.students.count
    return {
        "experts": it.making.experts,
        "distill": it.making.distill,
        "students": count * student_operations(it),
        "attacks": count * sum(attack_operations(it, registry, right, standing).values()),
    }


def rate(plan: Plan, registry: Registry) -> float:
    """Operations per second at which this machine trains the network of a plan's track.

    Raises:
        RunFailedError: the plan is for a GPU, and other machines have it.
    """
    if device_here(plan.device) != plan.device:
        raise RunFailedError("the speed of GPUs of other machines is not known here")
    shape, classes, *_ = _size(plan)
    entry = registry.get("networks", plan.track.network.name)
    with threads(plan.threads):
        return _rate(
            entry.load(), json.dumps(plan.track.network.options), shape, classes, plan.device
        )


@functools.lru_cache(maxsize=64)
def _rate(build: Any, options: str, shape: tuple[int, ...], classes: int, device: str) -> float:
    where = torch.device(device)
    # As many pixels, whatever the size: fewer large images keep a processor just as busy.
    count = max(2, min(MEASURED_IMAGES[device], MEASURED_IMAGES[device] * 32**2 // shape[1] ** 2))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, *shape, generator=generator).to(where)
    labels = (torch.arange(count) % classes).to(where)
    factory = NetworkFactory(
        build, json.loads(options), shape, classes, Preprocessing("none"), images, where
    )
    network = factory(0)
    weights = list(network.parameters())

    def step() -> None:
        torch.autograd.grad(F.cross_entropy(network(images), labels), weights)
        if device == "cuda":
            torch.cuda.synchronize()

    costs = network_costs(build, json.loads(options), shape, classes, twice=False)
    step()
    steps, start = 0, time.perf_counter()
    while (wall_s := time.perf_counter() - start) < MEASURE_S or not steps:
        step()
        steps += 1
    return steps * count * costs.weights / wall_s


def seconds_of_cells(plan: Plan, registry: Registry) -> Mapping[tuple[str, str | None], float]:
    """What one cell of each stage and attack is expected to take, where that can be told."""
    try:
        it, speed = run_facts(plan, registry), rate(plan, registry)
        found: dict[tuple[str, str | None], float] = {
            ("distill", None): it.making.distill,
            ("students", None): student_operations(it),
        }
        if it.experts:
            found["experts", None] = it.making.experts / it.experts
        for name, cost in attack_operations(it, registry).items():
            found["attacks", name] = cost
    except RobustDDError:
        return {}
    return {key: cost / speed for key, cost in found.items()}

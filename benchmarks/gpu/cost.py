"""Floating-point operations of a run, stage by stage, before it is run.

    python benchmarks/gpu/cost.py --method mat --track cifar10-ipc10 --preset minutes
    python benchmarks/gpu/cost.py --sweep benchmarks/gpu/board.toml --rate 19

What one image costs in a forward pass, in a gradient and in a student step differentiated again is
counted from the program, as are an attack's passes; the rest is multiplied from plan and preset.

Seconds are operations divided by `--rate` (TFLOP/s): 19 is what experts of width 128 sustained on
an H200 (benchmarks/results/gpu/experts.json); small batches sustain less. What computes nothing is
left out: launches, memory, the fit of ZCA, sanity checks, files. Attacks are bounded from above as
if every test image stayed right; `--right` and `--standing` say which share is expected to be right
without an attack, and still after the first ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import chosen
import torch
import torch.nn.functional as F
from bench import count_operations
from torch import Tensor, nn

from robustdd_bench.attacks import AttackTask, ThreatModel
from robustdd_bench.config import recorded_config
from robustdd_bench.errors import RobustDDError
from robustdd_bench.evaluation.students import total_steps
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.networks import Builder, NetworkFactory
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import NetworkSpec, Track
from robustdd_bench.records.plan import Plan
from robustdd_bench.seeds import ExampleGenerator
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe
from robustdd_bench.toolkit.trajectories.matching import TrajectoryDistiller
from robustdd_bench.toolkit.trajectories.unroll import Step, step_products

DATA = {
    "cifar10": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": ((3, 32, 32), 100, 50_000, 10_000),
    "digits": ((1, 8, 8), 10, 1438, 359),
}
"""Shape of an image, classes, training and test images."""
STAGES = ("experts", "distill", "students", "attacks")
_GUARD = 512 * 10
"""Image steps of the guard of single-step adversarial training, each epoch."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Operations for one image on one network."""

    forward: float
    weights: float
    """The gradient in the weights, forward pass included."""
    pixels: float
    """The gradient in the pixels, forward pass included."""
    products: float = 0.0
    """The gradient in the weights, and its products with a vector: in weights and image."""
    matched: float = 0.0
    """The gradient in the weights, and its products with a vector in the image alone."""

    def behind(self, layer: float) -> Costs:
        """The same behind a linear layer without weights, which costs so much forward."""
        return Costs(self.forward + layer, self.weights + layer, self.pixels + 2 * layer)

    def step(self, flavour: str, attack_steps: int) -> float:
        """A training step of a flavour of `robustdd_bench.toolkit.adversarial`."""
        if flavour == "natural":
            return self.weights
        search = attack_steps * self.pixels
        if flavour in ("pgd", "fast"):
            return search + self.weights
        reference = self.forward if flavour == "trades" else 0.0
        return reference + search + 2 * self.weights


def network_costs(
    registry: Registry, spec: NetworkSpec, shape: Sequence[int], classes: int, *, twice: bool
) -> Costs:
    """Count a network, without preprocessing.

    Args:
        registry: where it is.
        spec: its name and options.
        shape: C, H, W.
        classes: K.
        twice: count what is differentiated twice as well; it must have no running statistics.
    """
    build = registry.get("networks", spec.name).load()
    return _network_costs(build, json.dumps(spec.options), tuple(shape), classes, twice)


@functools.cache
def _network_costs(
    build: Builder, options: str, shape: tuple[int, ...], classes: int, twice: bool
) -> Costs:
    count = 2
    images, labels = torch.zeros(count, *shape), torch.arange(count)
    none, cpu = Preprocessing("none"), torch.device("cpu")
    factory = NetworkFactory(build, json.loads(options), shape, classes, none, images, cpu)
    network = factory(0)
    weights = list(network.parameters())
    leaf = images.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            network(images)

    def in_weights() -> None:
        torch.autograd.grad(F.cross_entropy(network(images), labels), weights)

    def in_pixels() -> None:
        network.requires_grad_(False)
        torch.autograd.grad(F.cross_entropy(network(leaf), labels), leaf)
        network.requires_grad_(True)

    calls: list[Callable[[], object]] = [forward, in_weights, in_pixels]
    if twice:
        flat = FlatNetwork(network)
        theta = flat.theta()

        def in_image() -> None:
            theta = flat.theta().requires_grad_()
            loss = F.cross_entropy(flat(theta, leaf), labels)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            torch.autograd.grad(gradient.sum(), leaf)

        step = Step(None, None)
        calls += [lambda: step_products(flat, theta, images, labels, step, theta), in_image]
    return Costs(*(count_operations(call) / count for call in calls))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the stages of a plan depend on."""

    plan: Plan
    distiller: Any
    pixels: int
    classes: int
    train: int
    test: int
    input: Costs
    """The method's network in its input space."""
    network: Costs
    """The method's network behind its preprocessing."""
    student: Costs
    """A student behind the set's preprocessing."""

    @property
    def ipc(self) -> int:
        """Images per class."""
        return self.plan.track.data.ipc

    @property
    def images(self) -> int:
        """Images of the set."""
        reference = getattr(type(self.distiller), "reference", False)
        return self.train if reference else self.classes * self.ipc


def facts(plan: Plan, registry: Registry) -> Facts:
    """Everything that is counted once for a plan.

    Raises:
        UsageError: the size of the track's data is not known here.
    """
    track = plan.track
    if track.data.dataset not in DATA or {"train_per_class", "test_per_class"} & set(
        track.data.options
    ):
        raise RobustDDError(f"{track.name}: the size of its data is not known here")
    shape, classes, train, test = DATA[track.data.dataset]
    if plan.split == "validation":
        held = round(train * track.data.validation_fraction)
        train, test = train - held, held
    kind = registry.get("distillers", plan.method).load()
    distiller = kind(recorded_config(kind.Config, plan.config, plan.method))
    pixels = shape[0] * shape[1] * shape[2]
    own = getattr(distiller.config, "preprocessing", "track")
    zca = (track.preprocessing.kind if own == "track" else own) == "zca"
    layer = 2.0 * pixels**2 if zca else 0.0
    plain = network_costs(registry, track.network, shape, classes, twice=True)
    student = plain
    if track.student_network is not None:
        student = network_costs(registry, track.student_network, shape, classes, twice=False)
    return Facts(
        plan, distiller, pixels, classes, train, test,
        plain, plain.behind(layer), student.behind(layer),
    )  # fmt: skip


def expert(recipe: ExpertRecipe, train: int, costs: Costs) -> float:
    """Operations of one expert."""
    recipe = recipe.canonical()
    operations = recipe.epochs * train * costs.step(recipe.flavour, recipe.attack_steps)
    if recipe.flavour == "fast":
        operations += recipe.epochs * (_GUARD * costs.pixels + _GUARD / 10 * costs.forward)
    return operations + train * costs.forward


def _trajectories(it: Facts) -> tuple[float, float]:
    config, track = it.distiller.config, it.plan.track
    threat = ThreatModel(track.threat.norm, track.threat.headline)
    asked: Any = SimpleNamespace(threat=threat, augmentation=track.students.augmentation)
    experts = config.experts * expert(it.distiller.recipe(asked), it.train, it.network)
    batch = config.student_batch
    images = batch if 0 < batch < it.images else it.images
    step = images * (it.input.weights + it.input.products)
    joint = 0.0
    if getattr(config, "joint_weight", 0):
        joint = min(config.joint_batch, it.train) * it.network.step("pgd", config.attack_steps)
    return experts, config.iterations * (config.student_steps * step + joint)


def _gradient_matching(it: Facts) -> tuple[float, float]:
    from robustdd_dc.distillers import _recipe

    config = it.distiller.config
    outer, inner = _recipe(config, "none").loops(it.ipc)
    real = it.classes * min(config.batch_real, it.train // it.classes)
    layer = it.network.forward - it.input.forward
    matching = real * (it.input.weights + layer) + it.images * it.input.matched
    training = inner * it.images * it.input.weights
    return 0.0, config.iterations * (outer * matching + (outer - 1) * training)


def _distribution_matching(it: Facts) -> tuple[float, float]:
    config = it.distiller.config
    real = it.classes * min(config.batch_real, it.train // it.classes)
    return 0.0, config.iterations * (real * it.network.forward + it.images * it.input.pixels)


def _features(it: Facts) -> tuple[float, float]:
    epochs = it.distiller.config.epochs
    return 0.0, it.train * (epochs * it.network.weights + it.network.forward)


def _k_means(it: Facts) -> tuple[float, float]:
    config = it.distiller.config
    rounds = config.restarts * (2 * config.iterations + 2)
    return 0.0, 2.0 * rounds * it.train * it.ipc * it.pixels


def _nothing(it: Facts) -> tuple[float, float]:
    return 0.0, 0.0


METHODS: dict[str, Callable[[Facts], tuple[float, float]]] = {
    "dc": _gradient_matching,
    "dsa": _gradient_matching,
    "dm": _distribution_matching,
    "herding": _features,
    "k-centre": _features,
    "k-means": _k_means,
    "random": _nothing,
    "full": _nothing,
}
"""Operations of the experts and of the distillation; trajectory methods go by their class."""


def students(it: Facts) -> float:
    """Operations of the students' training, and of their accuracies on set and test split."""
    spec = it.plan.track.students
    batches = -(-it.images // spec.batch_size)
    seen = total_steps(spec, it.images) * it.images / batches
    kind = spec.adversarial
    step = it.student.weights if kind is None else it.student.step(kind.flavour, kind.steps)
    return spec.count * (seen * step + (it.images + it.test) * it.student.forward)


class _Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tally: list[int]) -> Tensor:
        ctx.tally = tally
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        ctx.tally[1] += 1
        return cotangents[0], None


class _Fortress(nn.Module):
    """A model that no attack breaks: class 0 leads by far; it counts passes and gradients."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.tally = [0, 0]
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.layer = nn.Linear(pixels, classes)
        with torch.no_grad():
            self.layer.bias[0] += 100.0

    def forward(self, x: Tensor) -> Tensor:
        self.tally[0] += len(x)
        logits: Tensor = self.layer(_Tick.apply(x, self.tally).flatten(1))
        return logits


@functools.cache
def passes(name: str, config: str, shape: Sequence[int], classes: int, norm: str) -> tuple:
    """Forward passes and gradients for one image that an attack never breaks.

    Args:
        name: of a registered attack.
        config: its configuration, as JSON.
        shape: C, H, W.
        classes: K.
        norm: of the threat model.
    """
    kind = collect(get_plugin_manager()).get("attacks", name).load()
    attack = kind(recorded_config(kind.Config, json.loads(config), name))
    model = _Fortress(torch.Size(shape).numel(), classes).eval().requires_grad_(False)
    image, label = torch.full((1, *shape), 0.5), torch.zeros(1, dtype=torch.int64)
    generator = ExampleGenerator(0, torch.zeros(1, dtype=torch.int64))
    threat = ThreatModel(norm, 2 / 255)
    attack.perturb(
        AttackTask(model=model, images=image, labels=label, threat=threat, generator=generator)
    )
    return tuple(model.tally)


def attacks(it: Facts, right: float = 1.0, standing: float = 1.0) -> float:
    """Operations of the suite on all students.

    Args:
        it: the plan.
        right: share of the test images that are right without an attack.
        standing: share of them that attacks on survivors find standing; upper bound 1.
    """
    track: Track = it.plan.track
    shape, classes, *_ = DATA[track.data.dataset]
    planned = {attack.name: dict(attack.config) for attack in it.plan.attacks}
    backward = it.student.pixels - it.student.forward
    operations = 0.0
    for spec in track.attacks:
        forwards, gradients = passes(
            spec.name, json.dumps(planned[spec.name]), shape, classes, track.threat.norm
        )
        one = (forwards + 1) * it.student.forward + gradients * backward  # 1: judged again
        share = right if spec.on == "all" else min(right, standing)
        images = share * min(spec.examples or it.test, it.test)
        operations += len(track.levels(spec)) * images * one
    return track.students.count * operations


def before_attacks(it: Facts) -> dict[str, float]:
    """Operations of each stage but the attacks.

    Raises:
        RobustDDError: the method is not known here.
    """
    if isinstance(it.distiller, TrajectoryDistiller):
        first = _trajectories(it)
    elif it.plan.method in METHODS:
        first = METHODS[it.plan.method](it)
    else:
        raise RobustDDError(f"the operations of method {it.plan.method!r} are not known here")
    return dict(zip(STAGES, (*first, students(it)), strict=False))


def cost(it: Facts, right: float = 1.0, standing: float = 1.0) -> dict[str, float]:
    """Operations of each stage; see `attacks` and `before_attacks`."""
    return before_attacks(it) | {"attacks": attacks(it, right, standing)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: seconds of each stage at the rate, and Peta-operations in all."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen.add_options(made)
    made.add_argument("--rate", type=float, default=19, help="TFLOP/s that are sustained")
    made.add_argument("--right", type=float, default=1.0, help="share right without an attack")
    made.add_argument("--standing", type=float, default=1.0, help="share that attacks leave")
    made.add_argument("--limit", type=float, default=540, help="seconds that a call may take")
    options = made.parse_args(arguments)
    chosen.check(made, options)
    try:
        registry = collect(get_plugin_manager())
        runs = chosen.runs(options, registry, "cpu")
        found = [cost(facts(run.plan, registry), options.right, options.standing) for run in runs]
    except RobustDDError as error:
        made.error(str(error))
    head = "".join(f"{stage:>10}" for stage in STAGES)
    print(f"seconds at {options.rate:g} TFLOP/s{'':27}{head}{'all':>9}{'PFLOP':>9}")
    for run, stages in zip(runs, found, strict=True):
        seconds = {stage: count / options.rate / 1e12 for stage, count in stages.items()}
        each = "".join(f"{seconds[stage]:10.1f}" for stage in STAGES)
        total = sum(seconds.values())
        more = "  more than a call" if total > options.limit else ""
        print(f"{run!s:46}{each}{total:9.0f}{sum(stages.values()) / 1e15:9.2f}{more}")


if __name__ == "__main__":
    main(sys.argv[1:])

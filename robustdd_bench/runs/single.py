"""One student, trained on a set and attacked outside of a run, as a run does it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.evaluation.outcomes import accuracy, standing, worst_case
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import AttackOutcome, attack_student
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.imports.external_set import check_fits
from robustdd_bench.protocol.tracks import Track, eps_label
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.progress.displays import NullReporter


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A trained student."""

    network: nn.Module = field(repr=False)
    """Pixels (B,C,H,W) in [0,1] to logits (B,K); in eval mode, with frozen weights."""
    index: int
    """Which of the track's students it is."""
    clean: float
    """Accuracy on the split that it is judged on, without an attack."""
    train_accuracy: float
    """Accuracy on the set."""
    context: RunContext = field(repr=False)
    """Data and track that it belongs to."""

    @property
    def track(self) -> Track:
        """The track whose recipe it was trained by."""
        return self.context.plan.track


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class AttackResults:
    """What a suite did to one network. Bits are bool (N,), True where it is right."""

    track: Track
    clean_bits: Tensor
    """Without an attack."""
    outcomes: tuple[AttackOutcome, ...]
    """Of each attack at each eps; see `robustdd_bench.evaluation.robustness`."""

    @property
    def clean(self) -> float:
        """Accuracy without an attack."""
        return accuracy(self.clean_bits)

    @property
    def bits(self) -> dict[float, Tensor]:
        """Eps to bits: the worst case over attacks at that eps and smaller ones."""
        found = {(o.attack, o.threat.eps): o.robust for o in self.outcomes}
        return worst_case(found, self.clean_bits, sorted({eps for _, eps in found}))

    @property
    def robust(self) -> dict[float, float]:
        """Eps to accuracy in the worst case over attacks."""
        return {eps: accuracy(bits) for eps, bits in self.bits.items()}

    @property
    def attacks(self) -> dict[str, dict[float, float]]:
        """Attack to eps to accuracy under that attack; one on survivors counts these alone."""
        found: dict[str, dict[float, float]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.attack, {})[outcome.threat.eps] = accuracy(outcome.robust)
        return found

    def __repr__(self) -> str:
        return f"AttackResults({self})"

    def __str__(self) -> str:
        levels = [f"{eps_label(eps)}: {100 * value:.1f}" for eps, value in self.robust.items()]
        norm = self.track.threat.norm
        return f"accuracy in %: clean {100 * self.clean:.1f}; {norm} eps " + ", ".join(levels)


def train(context: RunContext, distilled: DistilledSet, index: int) -> Student:
    """Train one of the track's students.

    Args:
        context: the track's data and networks; its seed is the run's.
        distilled: the set.
        index: which student, from 0.

    Raises:
        UsageError: the set does not fit the track, or the index is negative.
        RunFailedError: the training diverged.
    """
    if index < 0:
        raise UsageError(f"index must not be negative, not {index}")
    plan, seeds = context.plan, context.seeds.shared()
    check_fits(distilled, context.shape_CHW, context.num_classes, None)
    with context.network_code():
        student = train_student(
            context.student_network(distilled, seeds.seed("student-init", index)),
            distilled,
            plan.track.students,
            seeds,
            index,
            flip=plan.track.data.flip,
            reporter=NullReporter(),
            norm=plan.track.threat.norm,
            compile=context.compile,
        )
        bits = _classified(context, student.network)
    return Student(
        network=student.network,
        index=index,
        clean=accuracy(bits),
        train_accuracy=student.train_accuracy,
        context=context,
    )


def attack(
    context: RunContext,
    network: nn.Module,
    index: int,
    *,
    levels: Sequence[float] | None = None,
    attacks: Sequence[str] | Mapping[str, Attack] | None = None,
    sources: Sequence[nn.Module] = (),
    note: Callable[[str], object] = lambda text: None,
) -> AttackResults:
    """Attack a network with a track's suite, or with a part of it.

    Args:
        context: data, track and seed.
        network: pixels to logits, on the device of `bench`.
        index: whose noise the attacks draw, as that of the track's students.
        levels: every eps that attacks are run at; None: those that the track says for each.
        attacks: names of attacks of the suite, or attacks of your own by name; None: the suite.
        sources: other networks, for an attack that moves examples over from them.
        note: told, in one line, why compiled kernels are not used.

    Raises:
        UsageError: an attack is not in the suite, or needs sources and there are none.
        PluginError: an attack failed.
    """
    plan, evaluation = context.plan, context.evaluation
    suite = _suite(context, attacks)
    if levels is not None and (not levels or not all(0 < eps < float("inf") for eps in levels)):
        raise UsageError(f"eps must be positive and finite, not {levels}")
    for name, plugged in suite.items():
        if plugged.uses_sources and not sources:
            raise UsageError(
                f"attack {name!r} moves examples over from other networks: give sources=[...], "
                "or leave it out of attacks"
            )
    pixels = evaluation.pixels()
    clean = _classified(context, network)
    found: list[AttackOutcome] = []
    for name, plugged in suite.items():
        specs = [spec for spec in plan.track.attacks if spec.name == name]
        survivors = bool(specs) and specs[0].on == "survivors"
        before = tuple(found) if survivors else ()
        own = plan.track.levels(specs[0]) if specs else plan.track.threat.ladder
        entry = context.registry.entries.get("attacks", {}).get(name)
        earlier = list(before)
        for eps in sorted(levels) if levels is not None else own:
            outcome = attack_student(
                network,
                pixels,
                evaluation.labels,
                plugged,
                context.threat(eps),
                context.seeds.shared().seed("attack", name, index),
                plan.track.threat.batch_size,
                standing(clean, earlier, eps).to(evaluation.labels.device),
                examples=specs[0].examples if specs else None,
                name=name,
                plugin=None if entry is None else entry.plugin,
                sources=[list(sources) if plugged.uses_sources else []],
                compile=context.compile,
                note=note,
            )
            if survivors:
                earlier.append(outcome)
            found.append(outcome)
    return AttackResults(track=plan.track, clean_bits=clean, outcomes=tuple(found))


def _classified(context: RunContext, network: nn.Module) -> Tensor:
    """Bits (N,) on the CPU: what a network gets right without an attack."""
    split = context.evaluation
    size = context.plan.track.threat.batch_size
    with torch.no_grad():
        return classified(network, split.pixels(), split.labels, size).cpu()


def _suite(
    context: RunContext, attacks: Sequence[str] | Mapping[str, Attack] | None
) -> dict[str, Attack]:
    """The attacks to run, by name, in the order of the suite."""
    names = [attack.name for attack in context.plan.attacks]
    if isinstance(attacks, Mapping):
        return dict(attacks)
    if attacks is not None:
        if isinstance(attacks, str):
            raise UsageError(f"attacks must be a list of names, such as [{attacks!r}]")
        for name in attacks:
            if name not in names:
                raise unknown_name(f"attack of {context.plan.track.name}", name, names)
    chosen = {name: context.attack(name) for name in names if attacks is None or name in attacks}
    return chosen

"""One student, trained on a set and attacked outside of a run, as a run does it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from robustdd_bench.attacks import Attack
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.evaluation.outcomes import accuracy, standing, worst_case
from robustdd_bench.evaluation.robustness import AttackOutcome
from robustdd_bench.imports.external_set import check_fits
from robustdd_bench.protocol.tracks import AttackSpec, Track, eps_label
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.judging import attacked, right_bits, trained_student
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
    check_fits(distilled, context.shape_CHW, context.num_classes, None)
    with context.network_code():
        student, bits = trained_student(context, distilled, index, NullReporter())
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
        network: pixels to logits, in eval mode, on the device.
        index: whose noise the attacks draw, as that of the track's students.
        levels: every eps that attacks are run at; None: those that the track says for each.
        attacks: names of attacks of the suite, or attacks of your own by name; None: the suite.
        sources: other networks, for an attack that moves examples over from them.
        note: told, in one line, why compiled kernels are not used.

    Raises:
        UsageError: an attack is not in the suite, or needs sources and there are none; or the
            network is in training mode.
        PluginError: an attack failed.
    """
    if network.training:
        raise UsageError("the network is in training mode; call its eval() first")
    chosen = _chosen(context, attacks)
    for one in chosen:
        if one.attack.uses_sources and not sources:
            raise UsageError(
                f"attack {one.name!r} moves examples over from other networks: give "
                "sources=[...], or leave it out of attacks"
            )
    clean = right_bits(context, network)
    found: list[AttackOutcome] = []
    for one in chosen:
        survivors = one.spec is not None and one.spec.on == "survivors"
        earlier = list(found) if survivors else []
        for eps in sorted(levels) if levels is not None else one.levels:
            (outcome,) = attacked(
                context,
                [network],
                [index],
                one.attack,
                one.name,
                eps,
                [standing(clean, earlier, eps)],
                examples=one.spec.examples if one.spec else None,
                plugin=one.plugin,
                sources=[sources if one.attack.uses_sources else ()],
                note=note,
            )
            if survivors:
                earlier.append(outcome)
            found.append(outcome)
    return AttackResults(track=context.plan.track, clean_bits=clean, outcomes=tuple(found))


class _Chosen(NamedTuple):
    """An attack to run."""

    name: str
    attack: Attack
    levels: Sequence[float]
    spec: AttackSpec | None = None
    """What the track says of it; None of one that is not of the suite."""
    plugin: str | None = None


def _chosen(
    context: RunContext, attacks: Sequence[str] | Mapping[str, Attack] | None
) -> list[_Chosen]:
    """The attacks to run: of the suite in its order, or the caller's own."""
    track = context.plan.track
    if isinstance(attacks, Mapping):
        return [_Chosen(name, own, track.threat.ladder) for name, own in attacks.items()]
    names = [spec.name for spec in track.attacks]
    if isinstance(attacks, str):
        raise UsageError(f"attacks must be a list of names, such as [{attacks!r}]")
    for name in attacks or ():
        if name not in names:
            raise unknown_name(f"attack of {track.name}", name, names)
    return [
        _Chosen(
            spec.name,
            context.attack(spec.name),
            track.levels(spec),
            spec,
            context.registry.get("attacks", spec.name).plugin,
        )
        for spec in track.attacks
        if attacks is None or spec.name in attacks
    ]

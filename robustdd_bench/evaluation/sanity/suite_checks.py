"""Sanity checks that hold the attacks of a suite against one another, each with its evidence.

See `robustdd_bench.evaluation.sanity.student_checks`. Shapes: N examples, n of them at the start of
the split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.evaluation.outcomes import accuracy
from robustdd_bench.evaluation.robustness import AttackOutcome, attack_student
from robustdd_bench.guard import blame, plugin_of

_DEVIATIONS = 3.0
"""A weaker attack may lead by this many standard deviations of the paired difference."""
_MORE_STEPS = 0.02
"""Share of what an attack left that it may break with twice the steps."""
_GRADIENT_FREE = 0.01
"""Share of the split that only an attack without gradients may break."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: whether it passed, and what was seen."""

    name: str
    passed: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Strength:
    """Which attacks should be stronger than which, as their authors declare it."""

    pairs: frozenset[tuple[str, str]] = frozenset()
    """(weaker, stronger), over any number of steps; names that contradict each other are in none.
    """

    @classmethod
    def of(cls, suite: Mapping[str, Attack | type[Attack]]) -> Strength:
        """The order that the attacks of a suite declare, by the names used there."""
        pairs = {
            pair
            for name, attack in suite.items()
            for pair in [
                *((weaker, name) for weaker in attack.stronger_than),
                *((name, stronger) for stronger in attack.weaker_than),
            ]
        }
        while True:
            more = {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs
            if not more:
                break
            pairs |= more
        return cls(frozenset((a, b) for a, b in pairs if a != b and (b, a) not in pairs))

    @property
    def names(self) -> tuple[str, ...]:
        """Every attack that is in the order, from weak to strong."""
        weaker: dict[str, int] = {}
        for weak, strong in self.pairs:
            weaker[weak] = weaker.get(weak, 0)
            weaker[strong] = weaker.get(strong, 0) + 1
        return tuple(sorted(weaker, key=lambda name: (weaker[name], name)))

    def neighbours(self, names: Collection[str]) -> list[tuple[str, str]]:
        """The pairs among some attacks that no third one of them stands between, weak to strong."""
        among = [pair for pair in self.pairs if pair[0] in names and pair[1] in names]
        order = {name: place for place, name in enumerate(self.names)}
        return sorted(
            (
                (weak, strong)
                for weak, strong in among
                if not any(
                    (weak, other) in self.pairs and (other, strong) in self.pairs for other in names
                )
            ),
            key=lambda pair: (order[pair[0]], order[pair[1]]),
        )


def check_order(outcomes: Sequence[AttackOutcome], strength: Strength) -> Check:
    """A weaker attack does not break more than a stronger one.

    The two are compared on the same examples: those that both were run on. If they were equally
    strong, each of the d examples that only one of them breaks would be either's with probability
    1/2, so the weaker one's lead would have a standard deviation of sqrt(d) (McNemar 1947). A lead
    above three of them fails.
    """
    bits = {(o.attack, o.threat.eps): (o.robust, o.tried) for o in outcomes}
    failures, compared = [], 0
    for eps in sorted({eps for _, eps in bits}):
        names = {name for name, level in bits if level == eps}
        for weak, strong in strength.neighbours(names):
            both = bits[weak, eps][1] & bits[strong, eps][1]
            if not bool(both.any()):
                continue
            by_weak, by_strong = bits[weak, eps][0][both], bits[strong, eps][0][both]
            compared += 1
            if _leads(by_weak, by_strong, 0.0):
                failures.append(
                    f"eps {eps:g}: accuracy {accuracy(by_weak):.4f} under {weak} and "
                    f"{accuracy(by_strong):.4f} under {strong}"
                )
    hold = f"{compared} comparisons of {', '.join(strength.names)} hold"
    evidence = "; ".join(failures) or (hold if strength.pairs else "no attack of a declared order")
    return Check("stronger attacks are stronger", not failures, evidence)


def _leads(by_first: Tensor, by_second: Tensor, allowed: float) -> bool:
    """Whether the first of two attacks breaks clearly more than `allowed` examples more."""
    only_first = int((~by_first & by_second).sum())
    only_second = int((by_first & ~by_second).sum())
    deviation = math.sqrt(only_first + only_second)
    return only_first - only_second > allowed + _DEVIATIONS * deviation


def check_gradient_free(
    outcomes: Sequence[AttackOutcome],
    clean: Tensor,
    gradient_free: Collection[str],
) -> Check:
    """An attack without gradients breaks next to nothing that those with gradients left.

    Otherwise the gradients lead nowhere (Athalye et al. 2018, section 3.1, on such signs of
    masking). At each eps, an example counts if every attack with gradients was run on it and
    failed, and the other attack was run on it and did not. A share of .01 of the split, a, may do
    so; the count may exceed a N by three standard deviations, of a Poisson number: sqrt(a N).

    Args:
        outcomes: what the suite's attacks did.
        clean: the recorded bits (N,) without an attack.
        gradient_free: names of the attacks that use no gradients.
    """
    expected = _GRADIENT_FREE * len(clean)
    most = expected + _DEVIATIONS * math.sqrt(expected)
    found, failures = [], []
    for eps in sorted({outcome.threat.eps for outcome in outcomes}):
        here = [outcome for outcome in outcomes if outcome.threat.eps == eps]
        guided = [o.robust & o.tried for o in here if o.attack not in gradient_free]
        if not guided:
            continue
        left = torch.stack(guided).all(0)
        for outcome in here:
            if outcome.attack in gradient_free:
                more = int((left & outcome.tried & ~outcome.robust).sum())
                text = f"eps {eps:g}: {outcome.attack} breaks {more} that gradients left"
                found.append(text)
                failures += [text] if more > most else []
    evidence = "; ".join(failures or found) or "no attack without gradients beside one with them"
    evidence += f" (at most {math.floor(most)} of {len(clean)})" if found else ""
    return Check("gradient-free attacks are not better", not failures, evidence)


STEPS_CHECK = "more steps change little"


def strongest_iterative(suite: Mapping[str, Attack]) -> str | None:
    """The strongest attack of a suite that has gradients and a number of steps; None: no such one.

    It is one that is declared stronger or weaker than others and weaker than no other candidate;
    where there are none, any candidate. Of several it is the last in the suite.
    """
    strength = Strength.of(suite)
    names = [
        name
        for name, attack in suite.items()
        if attack.white_box and type(getattr(attack.config, "steps", None)) is int
    ]
    ordered = [name for name in names if name in strength.names]
    best = [
        name for name in ordered if not any((name, other) in strength.pairs for other in ordered)
    ]
    found = best or names
    return found[-1] if found else None


def check_more_steps(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    name: str,
    headline: ThreatModel,
    outcomes: Sequence[AttackOutcome],
    clean: Tensor,
    seed: int,
    batch_size: int,
    *,
    compile: bool = False,
) -> Check:
    """An attack with twice the steps breaks next to nothing more: it had converged.

    After Carlini et al. 2019, section 5 ("verify attacks have converged"). The two runs are
    compared as in `check_order`: the longer run's lead, examples only it breaks less those only
    the recorded one breaks, may be .02 of what the recorded one left, plus three times sqrt(d).

    Args:
        model: the student.
        images: the first examples of the split (n,C,H,W), n at most N.
        labels: (n,) int64.
        attack: an attack whose configuration has `steps`.
        name: what `outcomes` call it.
        headline: the threat model; there must be an outcome of the attack at it.
        outcomes: what the suite's attacks did.
        clean: the recorded bits (N,) without an attack.
        seed: seed of the longer run.
        batch_size: examples attacked together.
        compile: see `attack_students`.

    Raises:
        UsageError: the attack was not run at the headline.
    """
    few = len(images)
    there = [o for o in outcomes if (o.attack, o.threat) == (name, headline)]
    if not there:
        raise UsageError(f"no outcome of {name!r} at the headline, eps {headline.eps:g}")
    outcome, on = there[0], there[0].tried[:few] & clean[:few].cpu()
    if not bool(on.any()):
        return Check(STEPS_CHECK, True, f"{name} was run on none of {few} examples")
    try:
        with blame(plugin_of(attack), f"attack {name!r}"):
            config = dataclasses.replace(attack.config, steps=2 * attack.config.steps)
            again = type(attack)(config)
        longer = attack_student(
            model, images, labels, again, headline, seed, batch_size, on, name=name,
            compile=compile,
        )  # fmt: skip
    except PluginError as error:
        return Check(STEPS_CHECK, False, str(error))
    recorded, doubled = outcome.robust[:few][on], longer.robust[on]
    failed = _leads(doubled, recorded, _MORE_STEPS * int(recorded.sum()))
    evidence = (
        f"{name} at eps {headline.eps:g} leaves {int(recorded.sum())} of {int(on.sum())} examples "
        f"with {attack.config.steps} steps, {int(doubled.sum())} with {config.steps}"
    )
    return Check(STEPS_CHECK, not failed, evidence)

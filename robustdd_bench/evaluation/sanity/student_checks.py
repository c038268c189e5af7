"""Checks that a student's robust accuracy can be believed, each with its evidence.

After the recommendations of Athalye et al. 2018 ("Obfuscated gradients give a false sense of
security"), Carlini et al. 2019 ("On evaluating adversarial robustness", section 5) and the flags of
AutoAttack (Croce and Hein 2020). A check does not prove robustness; one that fails says why the
number may be wrong, and marks the run. Attacks come in as arguments: nothing here knows a plugin.

Shapes: N examples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.evaluation.outcomes import accuracy
from robustdd_bench.evaluation.prediction import frozen, other_batch_size, predict, right
from robustdd_bench.evaluation.robustness import AttackOutcome, attack_student
from robustdd_bench.evaluation.sanity.suite_checks import (
    STEPS_CHECK,
    Check,
    Strength,
    check_gradient_free,
    check_more_steps,
    check_order,
    strongest_iterative,
)

SUBSET = 128
"""Examples, from the start of the split, that the costly checks look at."""
_TIE = 1e-3
"""Relative gap of two logits below which their order is rounding: TF32 keeps 10 bits, and other
batch sizes sum in another order."""
_REPEAT = 64
"""Units in the last place, relative to the largest logit, that a repeated pass may differ by."""
_LIVE_GRADIENTS = 0.5
"""Least share of examples whose gradient is not exactly zero."""
_NEAR_ZERO = 0.05
"""Most that may survive an attack that can reach a grey image from any other."""


def check_student(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    clean: Tensor,
    outcomes: Sequence[AttackOutcome],
    unconstrained: Attack,
    seed: int,
    batch_size: int,
    strength: Strength | None = None,
    subset: int = SUBSET,
    suite: Mapping[str, Attack] | None = None,
    headline: ThreatModel | None = None,
    compile: bool = False,
) -> list[Check]:
    """All checks on one student.

    Args:
        model: the student.
        images: the split it was judged on (N,C,H,W) in [0,1].
        labels: (N,) int64.
        clean: the recorded bits (N,) without an attack.
        outcomes: what the suite's attacks did to it.
        unconstrained: a strong attack with gradients, run at a very large eps.
        seed: seed of that attack.
        batch_size: the one `clean` was recorded at.
        strength: which attacks should be stronger than which; None: as those of `suite` declare.
        subset: number of examples, from the start of the split, for the checks that cost more.
        suite: the attacks behind `outcomes`, by the names used there; None leaves out the checks
            that need to know them.
        headline: the threat model that the student is ranked by; given with `suite`.
        compile: whether compiled kernels compute what attacks hold; see `attack_students`.

    Raises:
        UsageError: one of `suite` and `headline` is given without the other.
    """
    few, truth = images[:subset], labels[:subset]
    checks = [
        check_eval_mode(model),
        check_deterministic(model, few, batch_size),
        check_logits(model, few, batch_size),
        check_reproduces(model, images, labels, clean, batch_size),
        check_gradient(model, few, truth),
        check_violations(outcomes),
        check_order(outcomes, strength or Strength.of(suite or {})),
        check_consistent(outcomes, clean),
        check_unconstrained(model, few, truth, unconstrained, seed, batch_size, compile=compile),
    ]
    if (suite is None) != (headline is None):
        raise UsageError("the sanity checks take suite and headline together, or neither")
    if suite is not None and headline is not None:
        blind = [name for name, attack in suite.items() if not attack.white_box]
        name = strongest_iterative(suite)
        again = (
            Check(STEPS_CHECK, True, "no attack with gradients and steps in the suite")
            if name is None
            else check_more_steps(
                model, few, truth, suite[name], name, headline, outcomes, clean, seed, batch_size,
                compile=compile,
            )
        )  # fmt: skip
        checks += [check_gradient_free(outcomes, clean, blind), again]
    return checks


def check_eval_mode(model: nn.Module) -> Check:
    """`eval()` reaches every module: no dropout, no batch statistics."""
    with frozen(model):
        training = [name or "(the model)" for name, part in model.named_modules() if part.training]
    evidence = (
        f"in train mode after eval(): {', '.join(training[:3])}" if training else "all modules"
    )
    return Check("eval mode", not training, evidence)


def check_deterministic(model: nn.Module, images: Tensor, batch_size: int) -> Check:
    """Repeated passes over the same images give the same logits.

    Four passes in many small batches: a model that tosses a coin for each batch agrees with itself
    by chance if it is asked rarely.
    """
    small = max(1, min(batch_size, len(images) // 8))
    first, *others = (predict(model, images, small) for _ in range(4))
    scale = float(first.abs().amax())
    gap = max(float((first - other).abs().amax()) for other in others)
    allowed = _REPEAT * torch.finfo(first.dtype).eps * scale
    evidence = f"largest difference of four passes {gap:.3g}, largest logit {scale:.3g}"
    return Check("deterministic forward", gap <= allowed, evidence)


def check_logits(model: nn.Module, images: Tensor, batch_size: int) -> Check:
    """Outputs are finite and are not probabilities, whose gradients vanish."""
    outputs = predict(model, images, batch_size).double()
    if not bool(outputs.isfinite().all()):
        return Check("outputs are logits", False, "outputs hold NaN or infinity")
    low, high = float(outputs.min()), float(outputs.max())
    off = float((outputs.sum(1) - 1).abs().amax())
    probabilities = low >= 0 and high <= 1 and off <= 1e-3
    evidence = f"outputs in [{low:.3g}, {high:.3g}], row sums up to {off:.3g} away from 1"
    return Check("outputs are logits", not probabilities, evidence)


def check_reproduces(
    model: nn.Module, images: Tensor, labels: Tensor, clean: Tensor, batch_size: int
) -> Check:
    """The recorded bits come out again at another batch size, ties within rounding apart."""
    other = other_batch_size(len(images), batch_size)
    logits = predict(model, images, other)
    differs = right(logits, labels) != clean.to(labels.device)
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    tie = top[:, 0] - top[:, -1] <= _TIE * logits.abs().amax(1)
    real, ties = int((differs & ~tie).sum()), int((differs & tie).sum())
    evidence = (
        f"{real} of {len(images)} outcomes differ at batch size {other} instead of {batch_size}"
        f" (and {ties} ties); accuracy {accuracy(right(logits, labels)):.4f}, "
        f"recorded {accuracy(clean):.4f}"
    )
    return Check("clean accuracy reproduces", real == 0, evidence)


def check_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Check:
    """The cross-entropy has a gradient in the pixels that is not exactly zero.

    Only examples that are classified rightly are looked at (all, if there are none): there a
    saturated softmax hides the gradient first.
    """
    name = "input gradient"
    with frozen(model), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        logits = model(pixels)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        try:
            (gradient,) = torch.autograd.grad(loss, pixels)
        except RuntimeError as error:
            return Check(name, False, f"no gradient reaches the pixels: {error}")
    live = gradient.flatten(1).abs().amax(1) > 0  # false for NaN
    use = right(logits.detach(), labels)
    use = use if bool(use.any()) else torch.ones_like(use)
    share = int((live & use).sum()) / int(use.sum())
    evidence = f"not zero for {share:.1%} of {int(use.sum())} examples"
    return Check(name, share >= _LIVE_GRADIENTS, evidence)


def check_violations(outcomes: Sequence[AttackOutcome]) -> Check:
    """Every attack stayed in the ball, in [0,1] and finite."""
    bad = [
        f"{outcome.attack} at eps {outcome.threat.eps:g}: {found.examples} examples "
        f"({found.not_finite} not finite, {found.outside_box} outside [0,1], "
        f"{found.outside_ball} outside the ball)"
        for outcome in outcomes
        if (found := outcome.violations).examples
    ]
    evidence = "; ".join(bad) or f"{len(outcomes)} outcomes, no example left the threat model"
    return Check("attacks stay in the threat model", not bad, evidence)


def check_consistent(outcomes: Sequence[AttackOutcome], clean: Tensor) -> Check:
    """An example that is robust is also right without an attack."""
    reference = clean.cpu()
    bad = [
        f"{outcome.attack} at eps {outcome.threat.eps:g}"
        for outcome in outcomes
        if outcome.robust.shape != reference.shape or bool((outcome.robust & ~reference).any())
    ]
    evidence = f"not so under {', '.join(bad)}" if bad else f"{len(outcomes)} outcomes"
    return Check("robust implies clean", not bad, evidence)


def check_unconstrained(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    seed: int,
    batch_size: int,
    eps: float = 0.5,
    *,
    compile: bool = False,
) -> Check:
    """An attack that may move every pixel by `eps` leaves next to nothing.

    At eps 0.5 (Linf) every image can be made the same grey one, so no classifier is robust there.
    """
    name = "unconstrained attack succeeds"
    threat = ThreatModel("Linf", eps)
    try:
        outcome = attack_student(
            model, images, labels, attack, threat, seed, batch_size, compile=compile
        )
    except PluginError as error:
        return Check(name, False, str(error))
    left = accuracy(outcome.robust)
    evidence = f"accuracy {left:.4f} of {len(images)} examples at eps {eps:g}"
    return Check(name, left <= _NEAR_ZERO, evidence)

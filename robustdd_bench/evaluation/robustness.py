"""Robust accuracy: attack students, and check what came back.

What counts is decided here and not by the attack: every adversarial example is judged again in a
fresh forward pass at another batch size. It breaks the student only if it is finite, in [0,1],
within eps and misclassified there. The attack holds a copy of the student, never the network that
judges: a hook, a patched `forward` or a changed buffer stays on the copy.

Shapes: N examples of a split, B a batch, C channels, H height, W width, K classes. Outcomes per
example ("bits") are bool (N,) on the CPU; True says that the student is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.lending import counted, lending
from robustdd_bench.evaluation.outcomes import first_bits
from robustdd_bench.evaluation.perturbing import alone, kinds_of_remark, together
from robustdd_bench.evaluation.prediction import (
    classified,
    frozen,
    other_batch_size,
    predict,
    right,
)
from robustdd_bench.evaluation.together import Layout, Students, layout_for
from robustdd_bench.toolkit.fast.blocks import compiled
from robustdd_bench.toolkit.fast.compile import SAMPLE, trusted

WitnessKeeper = Callable[[int, Tensor, Tensor], None]
"""Takes the number of a student, places (M,) in the split, and adversarial examples (M,C,H,W)."""


@dataclass(frozen=True, slots=True)
class Violations:
    """How many examples of an attack were not allowed; none of them counts as broken."""

    not_finite: int = 0
    outside_box: int = 0
    """With a pixel outside [0,1]."""
    outside_ball: int = 0
    """Further than eps from the image."""
    examples: int = 0
    """Examples with any of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackOutcome:
    """What one attack at one eps did to one student."""

    attack: str
    plugin: str
    threat: ThreatModel
    seed: int
    batch_size: int
    verify_batch_size: int
    tried: Tensor
    """(N,) bool, CPU: which examples were attacked."""
    robust: Tensor
    """(N,) bool, CPU: right before, and still right after the attack."""
    violations: Violations
    forwards: int
    """Images the attack passed through the student (verification not included)."""
    warnings: tuple[str, ...] = ()
    """What the attack says of its own result; see `kinds_of_remark`."""

    @property
    def attacked(self) -> int:
        """How many examples were attacked."""
        return int(self.tried.sum())

    @property
    def broken(self) -> int:
        """Attacked examples with a verified adversarial example."""
        return int((self.tried & ~self.robust).sum())


def tolerance(dtype: torch.dtype, eps: float) -> float:
    """By how much rounding may carry a projected point out of the ball: 1e-6 in float32.

    Adding a perturbation to a pixel rounds by half a unit in the last place, and the norm that a
    projection divides by has a relative error of a few.
    """
    return 8 * torch.finfo(dtype).eps * max(1.0, eps)


def check_examples(
    model: nn.Module,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    batch_size: int,
) -> tuple[Tensor, Violations]:
    """Which adversarial examples hold, in a fresh forward pass.

    Args:
        model: the student.
        images: (N,C,H,W) in [0,1].
        adversarial: (N,C,H,W), what is claimed.
        labels: true classes (N,).
        threat: the ball that the claim is about.
        batch_size: of the forward pass.

    Returns:
        Bool (N,) on the images' device, True where the example is allowed and misclassified; and
        the counts of those that are not allowed.
    """
    slack = tolerance(images.dtype, threat.eps)
    broken, faults = [], []
    for clean, moved, truth in zip(
        torch.split(images, batch_size),
        torch.split(adversarial, batch_size),
        torch.split(labels, batch_size),
        strict=True,
    ):
        finite = moved.isfinite().flatten(1).all(1)
        box = ((moved >= -slack) & (moved <= 1 + slack)).flatten(1).all(1)
        # In float64, so that the check adds no rounding of its own.
        ball = threat.distance(moved.double(), clean.double()) <= threat.eps + slack
        wrong = ~right(predict(model, moved, batch_size), truth)
        broken.append(finite & box & ball & wrong)
        # NaN and infinity also fail the other comparisons; they are counted once, as what they are.
        faults.append(
            torch.stack([~finite, finite & ~box, finite & ~ball, ~(finite & box & ball)]).sum(1)
        )
    counts = torch.stack(faults).sum(0).tolist()
    return torch.cat(broken), Violations(*counts)


def attack_student(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    threat: ThreatModel,
    seed: int,
    batch_size: int,
    right_before: Tensor | None = None,
    **options: Any,
) -> AttackOutcome:
    """`attack_students` with one student.

    Args:
        model: the student, on the images' device.
        images: (N,C,H,W) float in [0,1].
        labels: (N,) int64.
        attack: the attack.
        threat: norm and eps, not targeted.
        seed: seed of the attack's noise.
        batch_size: examples attacked together.
        right_before: bool (N,), which examples count as right; None: those the student gets right.
        **options: see `attack_students`.
    """
    if right_before is None:
        right_before = classified(model, images, labels, batch_size)
    (outcome,) = attack_students(
        [model], images, labels, attack, threat, [seed], batch_size, [right_before], **options
    )
    return outcome


def attack_students(
    models: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    threat: ThreatModel,
    seeds: Sequence[int],
    batch_size: int,
    right_before: Sequence[Tensor],
    *,
    examples: int | None = None,
    name: str | None = None,
    plugin: str | None = None,
    layout: Layout | None = None,
    keep: WitnessKeeper | None = None,
    sources: Sequence[Sequence[nn.Module]] | None = None,
    compile: bool = False,
    note: Callable[[str], object] = lambda text: None,
) -> list[AttackOutcome]:
    """Attack students of one architecture on a split, together where the attack can.

    Only examples that a student still gets right are attacked. Noise is drawn per student and
    example, so the outcome depends neither on the batch size nor on which students are attacked
    together (up to rounding in the students' own arithmetic).

    Args:
        models: R students, on the images' device.
        images: (N,C,H,W) float in [0,1].
        labels: (N,) int64.
        attack: the attack.
        threat: norm and eps, not targeted.
        seeds: a seed of the attack's noise for each student.
        batch_size: examples of a student attacked together.
        right_before: for each student bool (N,): what it gets right, without an attack or after
            the attacks before. Nothing else is attacked, and nothing else can be robust.
        examples: attack only so many from the start of the split; None: all.
        name: what the attack is called in errors and in the outcome; its class by default.
        plugin: where it comes from; its package by default.
        layout: how students are attacked together; None: by the device.
        sources: for each student other networks, for an attack that uses them.
        keep: gets every verified adversarial example: student, places (M,), examples (M,C,H,W).
        compile: whether compiled kernels compute the copies that the attack holds. What judges is
            computed by torch's.
        note: told, in one line, why they are not used after all.

    Returns:
        An outcome for each student.

    Raises:
        UsageError: the threat model is targeted, or the attack says that it cannot be used so.
        PluginError: the attack raised, returned something else than images, or changed the
            weights of a student; the message names attack and plugin.
    """
    if threat.targeted:
        raise UsageError("robust accuracy is measured with an untargeted threat model")
    name = name or type(attack).__name__
    plugin = plugin or type(attack).__module__.partition(".")[0]
    standing = [bits.cpu().bool() for bits in right_before]
    tried = [first_bits(bits, examples) for bits in standing]
    places = [bits.nonzero().squeeze(1).to(images.device) for bits in tried]
    moved = move_examples(
        models,
        images,
        labels,
        attack,
        threat,
        seeds,
        batch_size,
        places,
        name=name,
        plugin=plugin,
        layout=layout,
        sources=sources,
        compile=compile,
        note=note,
    )
    found, forwards, remarks = moved.examples, moved.forwards, moved.remarks
    outcomes = []
    for r, model in enumerate(models):
        robust, violations = standing[r].clone(), Violations()
        verify_batch_size = other_batch_size(len(places[r]), batch_size)
        if len(places[r]):
            adversarial = found[r]
            broken, violations = check_examples(
                model,
                images[places[r]],
                adversarial,
                labels[places[r]],
                threat,
                verify_batch_size,
            )
            robust[tried[r]] = ~broken.cpu()
            if keep is not None:
                keep(r, places[r][broken], adversarial[broken])
        outcomes.append(
            AttackOutcome(
                attack=name,
                plugin=plugin,
                threat=threat,
                seed=seeds[r],
                batch_size=batch_size,
                verify_batch_size=verify_batch_size,
                tried=tried[r],
                robust=robust,
                violations=violations,
                forwards=forwards[r],
                warnings=remarks,
            )
        )
    return outcomes


@dataclass(frozen=True, slots=True)
class MovedExamples:
    """What an attack gave back, not yet judged."""

    examples: list[Tensor]
    """For each student (M,C,H,W), as the attack returned them: allowed or not."""
    forwards: list[int]
    """Images that were passed through each student."""
    remarks: tuple[str, ...]
    """What the attack says of its own result."""


def move_examples(
    models: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    threat: ThreatModel,
    seeds: Sequence[int],
    batch_size: int,
    places: Sequence[Tensor],
    *,
    name: str,
    plugin: str,
    layout: Layout | None = None,
    sources: Sequence[Sequence[nn.Module]] | None = None,
    compile: bool = False,
    note: Callable[[str], object] = lambda text: None,
) -> MovedExamples:
    """Run an attack on students, together where it can, and judge nothing.

    Args:
        models: R students, on the images' device.
        images: (N,C,H,W) float in [0,1].
        labels: (N,) int64.
        attack: the attack.
        threat: norm and eps.
        seeds: a seed of the attack's noise for each student.
        batch_size: examples of a student attacked together.
        places: for each student (M,) int64, which examples, on the images' device.
        name: what the attack is called in errors.
        plugin: where it comes from.
        layout: how students are attacked together; None: by the device.
        sources: for each student other networks, for an attack that uses them.
        compile: whether compiled kernels compute the copies that the attack holds.
        note: told, in one line, why they are not used after all.

    Raises:
        UsageError, PluginError: see `attack_students`.
    """
    said: list[str] = []
    with lending(plugin, name, models, seeds[0]) as lent:

        def ready(model: nn.Module) -> nn.Module:
            copied = lent(model)
            return fast_copy(copied, images, note) if compile else copied

        copies = [ready(model) for model in models]
        if attack.routed and len(models) > 1:
            students = Students(copies, layout or layout_for(images.device, compile))
            found = together(
                attack, students, images, labels, threat, seeds, places, batch_size, said
            )
            forwards = students.forwards
        else:
            found, forwards = [], []
            for r, (model, seed, where) in enumerate(zip(copies, seeds, places, strict=True)):
                with counted(model) as counter, contextlib.ExitStack() as stack:
                    others = [
                        stack.enter_context(frozen(ready(source)))
                        for source in (sources[r] if sources and attack.uses_sources else ())
                    ]
                    found.append(
                        alone(
                            attack,
                            model,
                            images,
                            labels,
                            threat,
                            seed,
                            where,
                            batch_size,
                            said,
                            others,
                        )
                    )
                forwards.append(counter[0])
    return MovedExamples(found, forwards, kinds_of_remark(said))


def fast_copy(model: nn.Module, images: Tensor, note: Callable[[str], object]) -> nn.Module:
    """A network of the same weights that compiled kernels compute, held against the other one.

    Args:
        model: in eval mode, its parameters frozen.
        images: (N,C,H,W), of which the first are used.
        note: told, in one line, why the model itself is given back.
    """

    def compute(network: nn.Module) -> list[Tensor]:
        with torch.enable_grad():
            x = images[:SAMPLE].clone().requires_grad_()
            logits = network(x)
            (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        return [logits, gradient]

    fast = compiled(model)
    return fast if trusted(lambda: compute(fast), lambda: compute(model), note) else model

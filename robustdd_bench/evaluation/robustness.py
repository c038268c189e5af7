"""Robust accuracy: attack a student, check what came back, take the worst case per example.

What counts is decided here and not by the attack: every adversarial example is judged again in a
fresh forward pass at another batch size. It breaks the student only if it is finite, in [0,1],
within eps and misclassified there.

Shapes: N examples of a split, B a batch, C channels, H height, W width, K classes. Outcomes per
example ("bits") are bool (N,) on the CPU; True says that the student is right.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.toolkit.randomness import ExampleGenerator
from robustdd_bench.toolkit.seeds import isolated_rng


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
    robust: Tensor
    """(N,) bool, CPU: right on the image, and still right after the attack."""
    attacked: int
    """Examples that were attacked; the others were wrong before."""
    broken: int
    """Attacked examples with a verified adversarial example."""
    violations: Violations
    forwards: int
    """Images the attack passed through the student (verification not included)."""
    wall_s: float


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with its parameters frozen; both are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits (N,K) of pixels (N,C,H,W), in eval mode and without gradients."""
    with frozen(model), torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(images, batch_size)])


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label has the largest logit; bool (N,). A row that holds NaN is wrong."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def classified(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Bits: whether the model is right on each image; bool (N,) on the CPU."""
    return right(predict(model, images, batch_size), labels).cpu()


def other_batch_size(count: int, batch_size: int) -> int:
    """A batch size that cuts `count` examples otherwise than `batch_size` does."""
    return min(count, batch_size) // 2 or 2


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
    clean_correct: Tensor | None = None,
    *,
    name: str | None = None,
    plugin: str | None = None,
) -> AttackOutcome:
    """Attack a student on a whole split.

    Only examples that the student gets right are attacked. Noise is drawn per example, by its
    place in the split, so the outcome does not depend on the batch size (up to rounding in the
    student's own arithmetic).

    Args:
        model: the student, on the images' device.
        images: (N,C,H,W) float in [0,1].
        labels: (N,) int64.
        attack: the attack.
        threat: norm and eps, not targeted.
        seed: seed of the attack's noise.
        batch_size: examples attacked together.
        clean_correct: bool (N,), which examples the student gets right; None: found out here.
        name: what the attack is called in errors and in the outcome; its class by default.
        plugin: where it comes from; its package by default.

    Raises:
        UsageError: the threat model is targeted.
        PluginError: the attack raised, returned something else than images, or changed the
            student; the message names attack and plugin.
    """
    if threat.targeted:
        raise UsageError("robust accuracy is measured with an untargeted threat model")
    name = name or type(attack).__name__
    plugin = plugin or type(attack).__module__.partition(".")[0]
    start = time.perf_counter()
    if clean_correct is None:
        clean_correct = classified(model, images, labels, batch_size)
    clean = clean_correct.cpu()
    places = clean.nonzero().squeeze(1).to(images.device)
    verify_batch_size = other_batch_size(len(places), batch_size)
    robust = clean.clone()
    violations, forwards = Violations(), 0
    if len(places) > 0:
        originals, truth = images[places], labels[places]
        with _guarded(model, f"attack {name!r} of plugin {plugin!r}", seed) as counter:
            adversarial = torch.cat(
                [
                    _perturb(attack, model, images[chunk], labels[chunk], threat, seed, chunk)
                    for chunk in torch.split(places, batch_size)
                ]
            )
        forwards = counter[0]
        broken, violations = check_examples(
            model, originals, adversarial, truth, threat, verify_batch_size
        )
        robust[clean] = ~broken.cpu()
    return AttackOutcome(
        attack=name,
        plugin=plugin,
        threat=threat,
        seed=seed,
        batch_size=batch_size,
        verify_batch_size=verify_batch_size,
        robust=robust,
        attacked=len(places),
        broken=len(places) - int(robust.sum()),
        violations=violations,
        forwards=forwards,
        wall_s=time.perf_counter() - start,
    )


def _perturb(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    seed: int,
    chunk: Tensor,
) -> Tensor:
    """One batch; `images` and `labels` are copies, so an attack may write into them."""
    shape, dtype = images.shape, images.dtype
    found = attack.perturb(model, images, labels, threat, ExampleGenerator(seed, chunk))
    if not isinstance(found, Tensor):
        raise TypeError(f"perturb returned {type(found).__name__}, not a tensor")
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(
            f"perturb returned {found.dtype} of shape {tuple(found.shape)} for images of "
            f"{dtype} and shape {tuple(shape)}"
        )
    return found.detach().to(images.device)


@contextlib.contextmanager
def _guarded(model: nn.Module, who: str, seed: int) -> Iterator[list[int]]:
    """Run code of an attack: name it in errors, count forwards, keep the student as it was."""
    before = {key: value.clone() for key, value in _state(model).items()}
    counter = [0]

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counter[0] += len(inputs[0])

    hook = model.register_forward_pre_hook(count)
    try:
        with frozen(model), torch.enable_grad(), isolated_rng(seed):
            yield counter
    except Exception as error:
        raise PluginError(f"{who} failed: {type(error).__name__}: {error}") from error
    finally:
        hook.remove()
    after = _state(model)
    changed = [
        key
        for key, value in before.items()
        if not torch.allclose(value, after[key], rtol=0, atol=0, equal_nan=True)
    ]
    if changed:
        raise PluginError(f"{who} changed the student's weights ({changed[0]})")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def worst_case(
    outcomes: Mapping[tuple[str, float], Tensor], clean: Tensor, ladder: Sequence[float]
) -> dict[float, Tensor]:
    """Per example the worst case over attacks, and over every eps that is not larger.

    An adversarial example found at a smaller eps lies in every larger ball too, so accuracy never
    rises with eps.

    Args:
        outcomes: (attack, eps) to robust bits (N,).
        clean: bits (N,) without an attack.
        ladder: the eps to report.

    Returns:
        Each eps of the ladder, rising, to bits (N,).

    Raises:
        UsageError: no attack was run at an eps of the ladder, or the bits differ in length.
    """
    for (name, eps), bits in outcomes.items():
        if bits.shape != clean.shape:
            raise UsageError(
                f"attack {name!r} at eps {eps:g} has {len(bits)} outcomes for {len(clean)} examples"
            )
    worst = {}
    for level in sorted(ladder):
        if not any(eps == level for _, eps in outcomes):
            raise UsageError(f"no attack was run at eps {level:g} of the ladder")
        robust = clean.cpu().bool().clone()
        for (_, eps), bits in outcomes.items():
            if eps <= level:
                robust &= bits.cpu().bool()
        worst[level] = robust
    return worst


def accuracy(bits: Tensor) -> float:
    """Share of examples that are right."""
    return int(bits.sum()) / len(bits)


def pack_bits(bits: Tensor) -> str:
    """Bits (N,) as text: "N:" and base64 of them, eight in a byte, the first the highest."""
    packed = np.packbits(bits.cpu().numpy().astype(bool))
    return f"{len(bits)}:{base64.b64encode(packed.tobytes()).decode('ascii')}"


def unpack_bits(text: str) -> Tensor:
    """The inverse of `pack_bits`.

    Raises:
        UsageError: the text is not what `pack_bits` writes.
    """
    count, _, encoded = text.partition(":")
    try:
        if not (count.isascii() and count.isdigit()) or len(count) > 12:
            raise ValueError("no number of bits")
        size = int(count)
        data = base64.b64decode(encoded.encode("ascii"), validate=True)
        if len(data) != math.ceil(size / 8):
            raise ValueError(f"{len(data)} bytes for {size} bits")
        bits = torch.from_numpy(np.unpackbits(np.frombuffer(data, np.uint8))[:size].astype(bool))
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"not a bit mask ('N:base64'): {error}") from error
    if pack_bits(bits) != text:
        raise UsageError("not a bit mask ('N:base64'): it is not in its canonical form")
    return bits

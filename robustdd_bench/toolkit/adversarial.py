"""Losses of adversarial training, for experts (weights in one flat vector) and for students.

- "natural": CE(f(x), y).
- "pgd": CE(f(x'), y), x' from projected gradient ascent on CE (Madry et al. 2018).
- "fast": the same from one step of 1.25 eps from a random start (Wong et al. 2020), at a fraction
  of the cost; it can collapse ("catastrophic overfitting"), so it wants an `OverfittingGuard`.
- "trades": CE(f(x), y) + beta KL(f(x) || f(x')), x' maximises the KL (Zhang et al. 2019, eq. 5).
- "mart": BCE(f(x'), y) + beta (1 - p_y(x)) KL(f(x) || f(x')) (Wang et al. 2020, eq. 12).

Adversaries act on pixels, before preprocessing and augmentation of the features. All
shapes are static and nothing synchronises with the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdd_bench.attacks import Model, ThreatModel
from robustdd_bench.toolkit.fast.flat import Augment, FlatNetwork

FLAVOURS = ("natural", "pgd", "fast", "trades", "mart")
FAST_STEP = 1.25
"""Step of fast adversarial training as a share of eps (Wong et al. 2020)."""


def check_eps(eps: float, name: str = "eps") -> None:
    """Raise ValueError unless a setting is a radius, or -1 for the track's.

    Args:
        eps: the setting.
        name: what it is called.
    """
    if -1 < eps < 0:
        raise ValueError(f"{name} must be positive, 0, or -1 for the track's, not {eps}")


def eps_of(setting: float, threat: ThreatModel) -> float:
    """The radius that a setting means: itself, or the track's headline eps where it is -1."""
    return threat.eps if setting < 0 else setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Adversary:
    """The inner maximisation of adversarial training."""

    threat: ThreatModel
    steps: int
    step_size: float
    """In pixel units."""
    random_start: bool = True
    extend_box: bool = False
    """Real images stay in [0,1]. Distilled ones may lie outside, and pulling them in would train on
    other images than the set's; if True, each image's box is [0,1] extended to its own range."""

    def _clip(self, point: Tensor, x: Tensor) -> Tensor:
        if not self.extend_box:
            return point.clamp(0, 1)
        low = x.flatten(1).amin(1).clamp_max(0).view(-1, 1, 1, 1)
        high = x.flatten(1).amax(1).clamp_min(1).view(-1, 1, 1, 1)
        return point.clamp(low, high)

    def _start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.random_start:
            return x
        if self.threat.norm == "Linf":
            noise = torch.empty_like(x).uniform_(-1, 1, generator=generator) * self.threat.eps
        else:
            noise = torch.empty_like(x).normal_(generator=generator)
            noise = noise / noise.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            noise = noise * self.threat.eps
        return self._clip(x + noise, x)

    def maximise(
        self, loss: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Projected gradient ascent on `loss(x')` from a random start; (B,C,H,W)."""
        point = self._start(x, generator)
        for _ in range(self.steps):
            leaf = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf), leaf)
            if self.threat.norm == "Linf":
                move = gradient.sign()
            else:
                length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
                move = gradient / length.view(-1, 1, 1, 1)
            point = self.threat.shorten(leaf.detach() + self.step_size * move, x)
            point = self._clip(point, x)
        return point


def adversarial_loss(
    flavour: str,
    network: FlatNetwork,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    augment: Augment | None,
    adversary: Adversary | None,
    beta: float,
    generator: torch.Generator,
) -> Tensor:
    """The training loss of one batch, differentiable in `theta`.

    Args:
        flavour: one of `FLAVOURS`.
        network: the architecture.
        theta: parameters (P,) that require grad.
        x: pixels (B,C,H,W) in [0,1].
        y: labels (B,) int64.
        augment: an augmentation drawn for this batch; the adversary sees the same one.
        adversary: the inner maximisation; unused for "natural".
        beta: weight of the regulariser of TRADES and MART.
        generator: randomness of the adversary, on the device of `x`.
    """

    def model(point: Tensor) -> Tensor:
        return network(theta, point, augment)

    if flavour == "natural" or adversary is None:
        return F.cross_entropy(model(x), y)
    fixed = theta.detach()
    attacked = attack_batch(
        flavour, lambda point: network(fixed, point, augment), x, y, adversary, generator
    )
    return robust_loss(flavour, model, x, attacked, y, beta)


def attack_batch(
    flavour: str,
    model: Model,
    x: Tensor,
    y: Tensor,
    adversary: Adversary,
    generator: torch.Generator,
) -> Tensor:
    """The adversarial examples (B,C,H,W) that a flavour trains on.

    Args:
        flavour: one of `FLAVOURS` but "natural".
        model: pixels to logits; only the gradient in the pixels is asked for.
        x: pixels (B,C,H,W).
        y: labels (B,) int64, or distributions (B,K).
        adversary: the inner maximisation.
        generator: randomness of its start, on the device of `x`.
    """
    if flavour == "trades":
        with torch.no_grad():
            reference = F.log_softmax(model(x), dim=1)

        def objective(point: Tensor) -> Tensor:
            logits = F.log_softmax(model(point), dim=1)
            return F.kl_div(logits, reference, reduction="sum", log_target=True)

    else:

        def objective(point: Tensor) -> Tensor:
            return F.cross_entropy(model(point), y, reduction="sum")

    return adversary.maximise(objective, x, generator)


def robust_loss(
    flavour: str, model: Model, x: Tensor, attacked: Tensor, y: Tensor, beta: float
) -> Tensor:
    """The loss of a batch and its adversarial examples, differentiable in the model's weights.

    Args:
        flavour: one of `FLAVOURS` but "natural".
        model: pixels to logits.
        x: pixels (B,C,H,W).
        attacked: what `attack_batch` made of them.
        y: labels (B,) int64, or distributions (B,K) where the flavour is not "mart".
        beta: weight of the regulariser of TRADES and MART.
    """
    if flavour in ("pgd", "fast"):
        return F.cross_entropy(model(attacked), y)
    clean = model(x)
    hard = model(attacked)
    divergence = F.kl_div(
        F.log_softmax(hard, dim=1), F.log_softmax(clean, dim=1), reduction="none", log_target=True
    ).sum(1)
    if flavour == "trades":
        return F.cross_entropy(clean, y) + beta * divergence.mean()
    return boosted_cross_entropy(hard, y) + beta * _mart_weighted(divergence, clean, y)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - max over other classes of p_k), the mean over the batch (MART, eq. 6)."""
    probabilities = logits.softmax(dim=1)
    other = probabilities.scatter(1, y.unsqueeze(1), 0.0).amax(1)
    return F.cross_entropy(logits, y) - torch.log1p(-other.clamp_max(1 - 1e-6)).mean()


def _mart_weighted(divergence: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    true = clean.softmax(dim=1).gather(1, y.unsqueeze(1)).squeeze(1)
    return (divergence * (1 - true)).mean()


class OverfittingGuard:
    """Notices the collapse of single-step adversarial training (Wong et al. 2020, section 5).

    A network that has collapsed withstands the single step and nothing else. Accuracy under PGD
    (10 steps of eps/4) is measured on fixed training images after each epoch; a fall by more than
    `LIMIT` from one epoch to the next is a collapse.

    Args:
        network: the architecture.
        x: training images (B,C,H,W) in [0,1], the same in every epoch.
        y: their labels (B,).
        threat: the threat model of the training.
        seed: seed of the random start, the same in every epoch.
    """

    LIMIT = 0.2

    def __init__(
        self, network: FlatNetwork, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
    ) -> None:
        self._network = network
        self._x, self._y = x, y
        self._adversary = Adversary(threat=threat, steps=10, step_size=threat.eps / 4)
        self._seed = seed
        self.accuracies: list[float] = []
        """Accuracy under PGD after each epoch so far."""

    def measure(self, theta: Tensor) -> float:
        """Accuracy of weights `theta` (P,) under PGD."""
        theta = theta.detach()
        generator = torch.Generator(device=self._x.device)
        generator.manual_seed(self._seed)

        def objective(point: Tensor) -> Tensor:
            return F.cross_entropy(self._network(theta, point), self._y, reduction="sum")

        attacked = self._adversary.maximise(objective, self._x, generator)
        with torch.no_grad():
            hits = self._network(theta, attacked).argmax(1) == self._y
        return float(hits.float().mean())

    def collapsed(self, theta: Tensor) -> bool:
        """Measure the weights after an epoch; whether they have collapsed in it."""
        self.accuracies.append(self.measure(theta))
        before = self.accuracies[-2:-1]
        return bool(before) and before[0] - self.accuracies[-1] > self.LIMIT

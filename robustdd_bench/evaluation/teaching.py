"""What students are taught: mixed images, labels by a teacher, and the loss.

Each batch is augmented, then mixed with itself in another order, then labelled. What is random is
drawn on the host and handed to the step in tensors, so that the step can be captured.

Shapes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.protocol.tracks import MixSpec, TeachingSpec
from robustdd_bench.toolkit.fast.capture import Inputs


@dataclass(frozen=True, slots=True)
class Mix:
    """How one batch is mixed with itself in another order."""

    order: Tensor
    """(B,) int64: the other image of each."""
    mask: Tensor
    """(1,1,H,W) in [0,1]: the share of the image itself at each place."""

    def images(self, x: Tensor) -> Tensor:
        """The mixed batch (B,C,H,W)."""
        mask = self.mask.to(x.dtype)
        return x * mask + x[self.order] * (1 - mask)

    def labels(self, y: Tensor) -> Tensor:
        """Distributions (B,K), mixed in the shares of the pixels."""
        share = self.mask.to(y.dtype).mean()
        return y * share + y[self.order] * (1 - share)

    def put(self, inputs: Inputs) -> Mix:
        """The same in tensors that stay where they are."""
        return Mix(inputs.put("mix-order", self.order), inputs.put("mix-mask", self.mask))


def beta_share(alpha: float, source: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha) (Johnk 1964: exact, by rejection).

    Args:
        alpha: positive, best at most 4.
        source: a CPU generator.
    """
    while True:
        draws = torch.rand(2, generator=source, dtype=torch.float64)
        one, other = draws.pow(1 / alpha).tolist()
        if 0 < one + other <= 1:
            return float(one / (one + other))


def draw_mix(spec: MixSpec, count: int, shape_HW: Sequence[int], source: torch.Generator) -> Mix:
    """How a batch is mixed.

    Args:
        spec: which way, and how much.
        count: images of the batch.
        shape_HW: height and width.
        source: a CPU generator.
    """
    order = torch.randperm(count, generator=source)
    share = beta_share(spec.alpha, source)
    height, width = shape_HW
    if spec.kind == "mixup":
        return Mix(order, torch.full((1, 1, height, width), share))
    # A rectangle of the image's shape and of (1 - share) of its area, cut off at the edges.
    tall, wide = (int(side * math.sqrt(1 - share)) for side in (height, width))
    row = int(torch.randint(height, (1,), generator=source))
    column = int(torch.randint(width, (1,), generator=source))
    mask = torch.ones(1, 1, height, width)
    rows = slice(max(row - tall // 2, 0), row + tall // 2)
    mask[:, :, rows, max(column - wide // 2, 0) : column + wide // 2] = 0.0
    return Mix(order, mask)


def distributions(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Labels (B,) or (B,K) as distributions (B,K)."""
    if labels.ndim == 2:
        return labels.to(dtype)
    return F.one_hot(labels, classes).to(dtype)


def taught_loss(
    logits: Tensor,
    view: Tensor,
    labels: Tensor,
    mix: Mix | None,
    spec: TeachingSpec | None,
    teacher: nn.Module | None,
) -> Tensor:
    """The loss of a batch, differentiable in its logits.

    Args:
        logits: of the student (B,K) at the view.
        view: what it saw (B,C,H,W), behind the preprocessing layer.
        labels: of the images before they were mixed, (B,) or (B,K).
        mix: how they were mixed; None: they were not.
        spec: how a teacher teaches.
        teacher: input to logits; None: the labels are taught.
    """
    if spec is None or teacher is None:
        target = distributions(labels, logits.shape[1], logits.dtype)
        return F.cross_entropy(logits, target if mix is None else mix.labels(target))
    with torch.no_grad():
        told = teacher(view) / spec.temperature
    if spec.loss == "cross-entropy":
        return F.cross_entropy(logits, told.softmax(1))
    answer = F.log_softmax(logits / spec.temperature, 1)
    divergence = F.kl_div(answer, F.log_softmax(told, 1), reduction="batchmean", log_target=True)
    return spec.temperature**2 * divergence

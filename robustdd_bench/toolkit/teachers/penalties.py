"""Losses that make a teacher smooth or robust.

- "cure" (Moosavi-Dezfooli et al. 2019; the CIFAR script of GUARD, Xue et al. 2025): with the mean
  loss l of a batch of B, g = dl/dx, and a step z_i = h g_i / |g_i|, the penalty is
  lambda mean_i |d[l(x+z) - l(x)]/dx_i|, differentiated through. Since l is a mean, it carries a
  factor 1/B, as in the published code.
- "difference" (GUARD's script for larger images): beta |l(x+z) - l(x)| for the same z, with no
  second derivative.
- "pgd", "fast": cross-entropy of adversarial examples (`robustdd_bench.toolkit.adversarial`).

Both steps z are taken in the network's input space (normalised pixels), as published: there they
are no threat model but a probe of the curvature. Penalties and adversaries see the network in eval
mode, so that batch norm counts only what is trained on.

Shapes: B images, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TINY = 1e-7


def curvature_step(body: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Z (B,C,H,W): a step of length `radius` along the gradient of each image's loss.

    Args:
        body: a network in eval mode.
        x: its input (B,C,H,W).
        y: labels (B,).
        radius: h, in the space of `x`.
    """
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(body(leaf), y), leaf)
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    # As published, so that an image without a gradient has a step too.
    step: Tensor = radius * (gradient + _TINY) / (length + _TINY)
    return step


def cure_penalty(body: nn.Module, x: Tensor, y: Tensor, *, weight: float, radius: float) -> Tensor:
    """GUARD's penalty of CIFAR, differentiable in the weights through a second derivative.

    Args:
        body: a network in eval mode.
        x: its input (B,C,H,W).
        y: labels (B,).
        weight: lambda.
        radius: h, in the space of `x`.
    """
    z = curvature_step(body, x, y, radius)
    leaf = x.detach().requires_grad_()
    apart = F.cross_entropy(body(leaf + z), y) - F.cross_entropy(body(leaf), y)
    (gradient,) = torch.autograd.grad(apart, leaf, create_graph=True)
    size: Tensor = gradient.flatten(1).norm(dim=1).mean()
    return weight * size


def difference_penalty(
    body: nn.Module, x: Tensor, y: Tensor, *, weight: float, radius: float
) -> Tensor:
    """GUARD's penalty of larger images, differentiable in the weights.

    Args:
        body: a network in eval mode.
        x: its input (B,C,H,W).
        y: labels (B,).
        weight: beta.
        radius: h, in the space of `x`.
    """
    z = curvature_step(body, x, y, radius)
    x = x.detach()
    return weight * (F.cross_entropy(body(x + z), y) - F.cross_entropy(body(x), y)).abs()

r"""GSAM: gradient descent towards flat minima, on one vector of weights.

Flat experts (Du et al. CVPR 2023, FTD) are trained by surrogate gap guided sharpness-aware
minimisation (Zhuang et al. ICLR 2022). With g(theta) the gradient of a batch's loss:

    g_0 = g(theta)
    e   = rho T^2 g_0 / (|T g_0| + 1e-12),    T = diag(|theta|) if adaptive, else the identity
    g_p = g(theta + e)
    h   = g_0 - <g_0, g_p> g_p / |g_p|^2      (of g_0, what is orthogonal to g_p)
    G   = g_p - alpha h

and theta moves along G. g_p lowers the loss of the worst neighbour; the step along h lowers the
surrogate gap, that loss less the loss at theta, and leaves it the same to first order. alpha = 0 is
SAM (Foret et al. 2021), and with T ASAM (Kwon et al. 2021). FTD's published code has T: its option
`adaptive` is on, and whatever its command line says reads as true. Batch and augmentation are the
same in both passes. Its guards against a division by zero, 1e-12 added to each norm and product of
norms, are kept.

Shapes: P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

TINY = 1e-12


def gsam_gradient(
    loss_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    theta: Tensor,
    *,
    rho: float,
    alpha: float,
    adaptive: bool,
) -> tuple[Tensor, Tensor]:
    """The loss at `theta` and the direction G (P,).

    Args:
        loss_and_gradient: of weights (P,): the loss () and its gradient (P,), both detached.
        theta: the weights (P,); they are left as they are.
        rho: radius of the ascent.
        alpha: weight of the surrogate gap.
        adaptive: whether the ascent is scaled by the weights' own sizes.
    """
    loss, plain = loss_and_gradient(theta)
    if adaptive:
        ascent = theta.square() * plain * (rho / ((theta.abs() * plain).norm() + TINY))
    else:
        ascent = plain * (rho / (plain.norm() + TINY))
    _, perturbed = loss_and_gradient(theta + ascent)
    old, new = plain.norm(), perturbed.norm()
    cosine = (plain * perturbed).sum() / (new * old + TINY)
    orthogonal = plain - (cosine * old / (new + TINY)) * perturbed
    return loss, perturbed - alpha * orthogonal

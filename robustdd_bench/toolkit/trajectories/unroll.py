r"""The exact gradient of a loss of trained weights, through the training, in one step's memory.

A student starts at theta_0 and takes N steps of gradient descent on a distilled set (x, y) with
learning rate alpha and momentum mu (Maclaurin et al. 2015; Cazenavette et al. 2022, eq. 2 to 4):

    g_i     = d/dtheta  CE(theta_i; x[b_i], y[b_i])
    v_{i+1} = mu v_i + g_i,    v_0 = 0
    theta_{i+1} = theta_i - alpha v_{i+1}

and the outer loss is L(theta_N), in matching |theta_N - target|^2 over |theta_0 - target|^2.
The naive form keeps the graph of all N steps. The adjoint form keeps theta_i (P numbers a step) and
walks back, with lambda = dL/dtheta_{i+1} and nu = dL/dv_{i+1}:

    nu          <- nu - alpha lambda                 (v_{i+1} enters theta_{i+1})
    dL/dalpha   <- dL/dalpha - <v_{i+1}, lambda>
    (p, q, r)    = vector-Jacobian product of (theta_i, x, y) -> g_i  with nu
    dL/dx[b_i]  += q,   dL/dy[b_i] += r
    lambda      <- lambda + p
    nu          <- mu nu

Nothing is left out. TESLA (Cui et al. 2023) takes another vector for the gradient, `direct` here:
it leaves out "lambda <- lambda + p". With mu = 0 what remains is

    dL/dx[b_i] ~ -alpha d<g_i, lambda_N>/dx[b_i],    dL/dalpha ~ -<sum_i g_i, lambda_N>,

where the exact form has lambda_{i+1} = (1 - alpha H_{i+1}) ... (1 - alpha H_{N-1}) lambda_N in
place of lambda_N, H_j the Hessian of step j in the weights. What is missing are all paths on which
x or alpha reach theta_N through the gradient of a later step: every term with a factor H_j. It is
exact for one step, or where the loss has no curvature.

`keep` trades memory for time: the graphs of the last `keep` steps are kept from the forward
pass instead of being computed again; the result is the same.

Shapes: n distilled images, P parameters, N steps, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdd_bench.toolkit.fast.convolutions import Entries, kept_bytes
from robustdd_bench.toolkit.fast.flat import Augment, FlatNetwork

TAPE_BYTES = 2**30
TAPED = 0.75
"""Share of the steps that a compiled network keeps results of: the rest would gain a few per cent
of time for a tenth more memory."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one student step sees: which distilled images, and how they are augmented."""

    index: Tensor | None = None
    """Indices (B,) into the distilled set; None: all of it."""
    augment: Augment | None = None
    """A fixed (already drawn) differentiable augmentation; None: none."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """The outer loss and its exact gradient; every field is a tensor on the device."""

    loss: Tensor
    """()"""
    images: Tensor
    """(n,C,H,W)"""
    labels: Tensor | None
    """(n,K) for soft labels, else None."""
    alpha: Tensor
    """()"""
    theta: Tensor
    """(P,): the trained weights theta_N."""


OuterLoss = Callable[[Tensor], Tensor]


def matching_loss(start: Tensor, target: Tensor) -> OuterLoss:
    """Theta -> |theta - target|^2 / |start - target|^2 (Cazenavette et al. 2022, eq. 2)."""
    scale = (start - target).square().sum()

    def loss(theta: Tensor) -> Tensor:
        return (theta - target).square().sum() / scale

    return loss


def student_loss(
    network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, augment: Augment | None
) -> Tensor:
    """Cross-entropy with hard labels (B,) or soft labels (B,K)."""
    return F.cross_entropy(network(theta, images, augment), labels)


def _pick(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor[index]


@dataclass(slots=True)
class _Graph:
    """One step's gradient, still differentiable in its inputs."""

    theta: Tensor
    images: Tensor
    labels: Tensor
    gradient: Tensor

    def products(self, nu: Tensor, direct: bool = False) -> tuple[Tensor, ...]:
        """Of `nu` with the gradient: in the weights, the images and, if they are soft, labels."""
        wanted = [self.images] if direct else [self.theta, self.images]
        if self.labels.is_floating_point():
            wanted.append(self.labels)
        return torch.autograd.grad(self.gradient, wanted, nu)


def _step_graph(
    network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, step: Step
) -> _Graph:
    theta = theta.detach().requires_grad_()
    x = _pick(images, step.index).detach().requires_grad_()
    y = _pick(labels, step.index).detach()
    if y.is_floating_point():
        y.requires_grad_()
    loss = student_loss(network, theta, x, y, step.augment)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    return _Graph(theta, x, y, gradient)


def step_gradient(
    network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, step: Step
) -> Tensor:
    """g_i (P,): the gradient of a student step in its weights `theta` (P,)."""
    leaf = theta.detach().requires_grad_()
    x, y = _pick(images, step.index), _pick(labels, step.index)
    (gradient,) = torch.autograd.grad(student_loss(network, leaf, x, y, step.augment), leaf)
    return gradient


def step_products(
    network: FlatNetwork,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    step: Step,
    nu: Tensor,
    *,
    direct: bool = False,
) -> tuple[Tensor, ...]:
    """The products of `nu` (P,) with g_i: p (P,), q (B,C,H,W) and, for soft labels, r (B,K).

    With `direct` without p.
    """
    return _step_graph(network, theta, images, labels, step).products(nu, direct)


def adjoint_gradients(
    network: FlatNetwork,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    start: Tensor,
    outer: OuterLoss,
    steps: Sequence[Step],
    *,
    momentum: float = 0.0,
    keep: int = 0,
    tape_bytes: int = TAPE_BYTES,
    direct: bool = False,
) -> Gradients:
    """The exact gradient of `outer(theta_N)` by the adjoint recursion.

    Args:
        network: the student's architecture.
        images: distilled images (n,C,H,W).
        labels: (n,) int64, or (n,K) for soft labels, whose gradient is then returned too.
        alpha: the student's learning rate, ().
        start: theta_0 (P,).
        outer: the outer loss, a differentiable function of theta_N.
        steps: the N student steps.
        momentum: mu of the student's gradient descent.
        keep: for how many of the last steps the graph is kept instead of computed twice.
        tape_bytes: how much a compiled network may keep of the forward steps, in all, so that it
            is not computed twice; the result is the same, bit for bit.
        direct: leave out what TESLA leaves out (the module's description).

    Returns:
        Loss and gradients; but for `direct` equal to full unrolling up to rounding.
    """
    images, labels, alpha = images.detach(), labels.detach(), alpha.detach()
    count = len(steps)
    thetas: list[Tensor] = []
    velocities: list[Tensor] = []
    graphs: dict[int, _Graph] = {}
    tapes: dict[int, Entries] = {}
    left = tape_bytes
    theta, velocity = start.detach(), torch.zeros_like(start)
    for i, step in enumerate(steps):
        thetas.append(theta)
        if i >= count - keep:
            graphs[i] = _step_graph(network, theta, images, labels, step)
            gradient = graphs[i].gradient.detach()
        elif network.tape is None:
            gradient = step_gradient(network, theta, images, labels, step)
        else:
            with network.tape.writing(left if i < TAPED * count else 0) as tapes[i]:
                gradient = step_gradient(network, theta, images, labels, step)
            left -= kept_bytes(tapes[i])
        velocity = gradient if momentum == 0 else momentum * velocity + gradient
        velocities.append(velocity)
        theta = theta - alpha * velocity

    end = theta.detach().requires_grad_()
    value = outer(end)
    (lam,) = torch.autograd.grad(value, end)
    nu = torch.zeros_like(lam)
    d_alpha = torch.zeros_like(alpha)
    d_images = torch.zeros_like(images)
    d_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
    for i in reversed(range(count)):
        step = steps[i]
        d_alpha = d_alpha - velocities[i] @ lam
        nu = nu - alpha * lam
        graph = graphs.pop(i, None)
        if graph is None:
            tape = network.tape
            with contextlib.nullcontext() if tape is None else tape.reading(tapes.pop(i)):
                graph = _step_graph(network, thetas[i], images, labels, step)
        products = graph.products(nu, direct)
        if not direct:
            lam, products = lam + products[0], products[1:]
        nu = momentum * nu
        if step.index is None:
            d_images += products[0]
            if d_labels is not None:
                d_labels += products[1]
        else:
            d_images.index_add_(0, step.index, products[0])
            if d_labels is not None:
                d_labels.index_add_(0, step.index, products[1])
    return Gradients(value.detach(), d_images, d_labels, d_alpha, end.detach())


def unrolled_gradients(
    network: FlatNetwork,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    start: Tensor,
    outer: OuterLoss,
    steps: Sequence[Step],
    *,
    momentum: float = 0.0,
) -> Gradients:
    """The same by one graph over all steps: the naive form that `adjoint_gradients` must equal."""
    images, alpha = images.detach().requires_grad_(), alpha.detach().requires_grad_()
    labels = labels.detach()
    if labels.is_floating_point():
        labels.requires_grad_()
    theta = start.detach().requires_grad_()
    velocity = torch.zeros_like(start)
    for step in steps:
        x, y = _pick(images, step.index), _pick(labels, step.index)
        loss = student_loss(network, theta, x, y, step.augment)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - alpha * velocity
    value = outer(theta)
    wanted = [images, alpha] + ([labels] if labels.is_floating_point() else [])
    gradients = torch.autograd.grad(value, wanted)
    return Gradients(
        value.detach(),
        gradients[0],
        gradients[2] if labels.is_floating_point() else None,
        gradients[1],
        theta.detach(),
    )

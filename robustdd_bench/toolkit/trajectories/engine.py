"""The adjoint recursion of `toolkit.trajectories.unroll` by two captured or compiled steps.

On a GPU one student step forward and one back are captured as CUDA graphs, one pair for each batch
size and family of augmentations, and replayed N times each. The result is that of
`adjoint_gradients`; where steps cannot be captured, that function does the work. On the CPU the
network may be compiled (`robustdd_bench.toolkit.fast.flat`): its first step and products are then
held against eager ones.

Shapes: n distilled images, P parameters, N steps, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustdd_bench.toolkit.augment import Drawn, put_drawn
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.unroll import (
    Gradients,
    OuterLoss,
    Step,
    adjoint_gradients,
    step_gradient,
    step_products,
)


class AdjointEngine:
    """Computes the exact gradient of an outer loss, again and again for one network.

    Args:
        network: the student's architecture.
        momentum: mu of the student's gradient descent.
        keep: for how many of the last steps the graph is kept; without effect on captured steps,
            which find nothing of an earlier replay.
        note: told why steps are not captured although the device could, or not compiled although
            the network is.
        direct: compute what TESLA takes for the gradient, not the exact one.
    """

    def __init__(
        self,
        network: FlatNetwork,
        *,
        momentum: float = 0.0,
        keep: int = 0,
        direct: bool = False,
        note: Callable[[str], object] | None = None,
    ) -> None:
        self._network = network
        self._momentum = momentum
        self._keep = keep
        self._direct = direct
        self._note = note
        self._captured: _Captured | None = None
        self._held = not network.compiled

    def gradients(
        self,
        images: Tensor,
        labels: Tensor,
        alpha: Tensor,
        start: Tensor,
        outer: OuterLoss,
        steps: Sequence[Step],
    ) -> Gradients:
        """The same as `adjoint_gradients` of these arguments."""
        if steps and not self._held:
            self._hold(images, labels, start, steps[0])
        fixed = all(step.augment is None or isinstance(step.augment, Drawn) for step in steps)
        if fixed and steps:
            found = self._captured
            if found is None or not found.fits(images, labels, len(steps)):
                found = self._captured = _Captured(
                    self._network, images, labels, start, len(steps), self._momentum, self._direct,
                    self._note,
                )  # fmt: skip
            if found.replayer.static:
                return found.gradients(images, labels, alpha, start, outer, steps)
        return adjoint_gradients(
            self._network,
            images,
            labels,
            alpha,
            start,
            outer,
            steps,
            momentum=self._momentum,
            keep=self._keep,
            direct=self._direct,
        )

    def _hold(self, images: Tensor, labels: Tensor, start: Tensor, step: Step) -> None:
        """Hold the first compiled step, and its products, against an eager one."""
        self._held = True
        network, images, labels = self._network, images.detach(), labels.detach()
        direction = step_gradient(network.eager(), start, images, labels, step)

        def compute(network: FlatNetwork) -> list[Tensor]:
            gradient = step_gradient(network, start, images, labels, step)
            return [gradient, *step_products(network, start, images, labels, step, direction)]

        network.hold(compute, self._note or (lambda text: None))


class _Captured:
    """Both steps on tensors that stay where they are."""

    def __init__(
        self,
        network: FlatNetwork,
        images: Tensor,
        labels: Tensor,
        start: Tensor,
        count: int,
        momentum: float,
        direct: bool,
        note: Callable[[str], object] | None,
    ) -> None:
        self._network = network
        self._momentum = momentum
        self._direct = direct
        self._images = torch.empty_like(images)
        self._labels = torch.empty_like(labels)
        self._alpha = torch.empty((), dtype=start.dtype, device=start.device)
        self._theta, self._velocity, self._lam, self._nu = (
            torch.zeros_like(start) for _ in range(4)
        )
        self._thetas = start.new_empty(count, len(start))
        self._velocities = torch.empty_like(self._thetas)
        self._d_alpha = torch.zeros_like(self._alpha)
        self._d_images = torch.zeros_like(images)
        self._d_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
        self._inputs = Inputs(images.device)
        changed = [self._theta, self._velocity, self._lam, self._nu, self._d_alpha, self._d_images]
        changed += [] if self._d_labels is None else [self._d_labels]
        self.replayer = Replayer(images.device, changed, note=note)

    def fits(self, images: Tensor, labels: Tensor, count: int) -> bool:
        """Whether the tensors are of the right shapes."""
        return (images.shape, labels.shape, labels.dtype, count) == (
            self._images.shape,
            self._labels.shape,
            self._labels.dtype,
            len(self._thetas),
        )

    def gradients(
        self,
        images: Tensor,
        labels: Tensor,
        alpha: Tensor,
        start: Tensor,
        outer: OuterLoss,
        steps: Sequence[Step],
    ) -> Gradients:
        """See `adjoint_gradients`."""
        self._images.copy_(images.detach())
        self._labels.copy_(labels.detach())
        self._alpha.copy_(alpha.detach())
        self._theta.copy_(start.detach())
        self._velocity.zero_()
        for i, step in enumerate(steps):
            self._thetas[i].copy_(self._theta)
            self._run("forward", step, self._forward)
            self._velocities[i].copy_(self._velocity)

        end = self._theta.clone().requires_grad_()
        value = outer(end)
        self._lam.copy_(torch.autograd.grad(value, end)[0])
        for zero in (self._nu, self._d_alpha, self._d_images, self._d_labels):
            if zero is not None:
                zero.zero_()
        for i in reversed(range(len(steps))):
            self._theta.copy_(self._thetas[i])
            self._velocity.copy_(self._velocities[i])
            self._run("backward", steps[i], self._backward)
        return Gradients(
            value.detach(),
            self._d_images.clone(),
            None if self._d_labels is None else self._d_labels.clone(),
            self._d_alpha.clone(),
            end.detach(),
        )

    def _run(self, name: str, step: Step, function: Callable[[Step], None]) -> None:
        index, size = None, len(self._images)
        if step.index is not None:
            size = len(step.index)
            index = self._inputs.put("index", step.index)
        augment, family = None, "none"
        if isinstance(step.augment, Drawn):
            params = step.augment.params
            augment, family = put_drawn(self._inputs, params), params.family
        fixed = Step(index, augment)
        key = name, index is None, size, family
        self.replayer.run(key, lambda: function(fixed))

    def _forward(self, step: Step) -> None:
        gradient = step_gradient(self._network, self._theta, self._images, self._labels, step)
        if self._momentum:
            gradient = self._momentum * self._velocity + gradient
        self._velocity.copy_(gradient)
        self._theta.copy_(self._theta - self._alpha * self._velocity)

    def _backward(self, step: Step) -> None:
        self._d_alpha.copy_(self._d_alpha - self._velocity @ self._lam)
        self._nu.copy_(self._nu - self._alpha * self._lam)
        products = step_products(
            self._network, self._theta, self._images, self._labels, step, self._nu,
            direct=self._direct,
        )  # fmt: skip
        if not self._direct:
            self._lam.add_(products[0])
            products = products[1:]
        self._nu.mul_(self._momentum)
        for total, product in zip((self._d_images, self._d_labels), products, strict=False):
            assert total is not None
            if step.index is None:
                total.add_(product)
            else:
                total.index_add_(0, step.index, product)

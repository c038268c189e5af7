"""The gradient of trajectory matching: the unrolled graph against the adjoint, eager and captured.

ConvNet-3 of width 128 on 3x32x32, CIFAR-10 at 1, 10 and 50 images a class, N student steps. The
first variant of each workload is the field's form: one graph over all steps, PyTorch's group norm.
Every variant's image gradient is compared with float64 at the smallest size.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as F
from bench import Bench, parse, relative
from torch import Tensor, nn

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.augment import Augmenter
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.fast.precision import precision
from robustdd_bench.toolkit.operations import count_operations
from robustdd_bench.toolkit.trajectories.engine import AdjointEngine
from robustdd_bench.toolkit.trajectories.unroll import (
    Gradients,
    OuterLoss,
    Step,
    adjoint_gradients,
    matching_loss,
    unrolled_gradients,
)

SIZES = {"C10 ipc 1, N=50": (10, 50), "C10 ipc 10, N=30": (100, 30), "C10 ipc 50, N=30": (500, 30)}
TINY = {"tiny, N=2": (4, 2)}
COMPILED = "compiled body"


class Problem:
    """A network, a distilled set and two points of a trajectory."""

    def __init__(
        self, images: int, steps: int, width: int, device: torch.device, dtype: torch.dtype,
        strategy: str,
    ) -> None:  # fmt: skip
        source = torch.Generator().manual_seed(0)
        with isolated_rng(0):
            self.body = convnet((3, 32, 32), 10, width=width).to(device, dtype)
        self.network = FlatNetwork(nn.Sequential(nn.Identity(), self.body))
        self.plain = FlatNetwork(nn.Sequential(nn.Identity(), self.body))
        self.plain.body = self.body  # PyTorch's own second derivative of group norm
        self.images = torch.randn(images, 3, 32, 32, generator=source).to(device, dtype)
        self.labels = (torch.arange(images) % 10).to(device)
        self.start = self.network.theta()
        move = torch.randn(self.start.shape, generator=source).to(device, dtype)
        self.target = self.start + 0.01 * move
        self.alpha = torch.tensor(0.01, device=device, dtype=dtype)
        augmenter = Augmenter(strategy, source)
        self.steps = [Step(None, augmenter.draw(self.images)) for _ in range(steps)]

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, OuterLoss]:
        """What every engine takes after the network, but the steps."""
        outer = matching_loss(self.start, self.target)
        return self.images, self.labels, self.alpha, self.start, outer


def reverse_over_forward(problem: Problem) -> Gradients:
    """The adjoint with <g_i, nu> taken forwards and differentiated once in reverse.

    With s(theta, x) = d/de CE(theta + e nu; x) = <g_i, nu>, the products are the gradient of s.
    """
    network, alpha = problem.plain, problem.alpha
    images, labels, _, start, outer = problem.arguments()
    thetas, theta = [], start

    for step in problem.steps:
        thetas.append(theta)
        leaf = theta.detach().requires_grad_()
        loss = F.cross_entropy(network(leaf, images, step.augment), labels)
        theta = theta - alpha * torch.autograd.grad(loss, leaf)[0]
    end = theta.detach().requires_grad_()
    value = outer(end)
    (lam,) = torch.autograd.grad(value, end)
    d_images, d_alpha = torch.zeros_like(images), torch.zeros_like(alpha)
    following = [*thetas[1:], theta]
    for i in reversed(range(len(thetas))):
        step = problem.steps[i]
        d_alpha = d_alpha + ((following[i] - thetas[i]) / alpha) @ lam
        nu = -alpha * lam
        at = thetas[i].detach().requires_grad_()
        x = images.detach().requires_grad_()
        with fwd.dual_level():
            logits = network(fwd.make_dual(at, nu), x, step.augment)
            # Cross-entropy written out: torch's own cannot be differentiated forwards, then back.
            own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
            top = logits.detach().amax(1, keepdim=True)
            loss = ((logits - top).exp().sum(1).log() + top.squeeze(1) - own).mean()
            slope = fwd.unpack_dual(loss).tangent
            assert slope is not None
        # Outside of the level: the way back is differentiated no further.
        of_theta, of_x = torch.autograd.grad(slope, (at, x))
        lam = lam + of_theta
        d_images += of_x
    return Gradients(value.detach(), d_images, None, d_alpha, end.detach())


def compiled(problem: Problem) -> Callable[[], Gradients]:
    """The adjoint whose inner functions go through torch.compile, as far as it takes them."""
    network = FlatNetwork(nn.Sequential(nn.Identity(), problem.body))
    body = torch.compile(problem.body, dynamic=False)
    assert isinstance(body, nn.Module)
    network.body = body
    return lambda: adjoint_gradients(network, *problem.arguments(), problem.steps)


def kernels(problem: Problem) -> Callable[[], Gradients]:
    """The captured steps of a network that compiled kernels compute."""
    network = FlatNetwork(nn.Sequential(nn.Identity(), problem.body), compile=True)
    notes: list[str] = []
    engine = AdjointEngine(network, note=notes.append)

    def call() -> Gradients:
        found = engine.gradients(*problem.arguments(), problem.steps)
        if notes:
            raise RuntimeError(notes[0])
        return found

    return call


def variants(problem: Problem) -> dict[str, Callable[[], Gradients]]:
    """By name: the field's form first."""
    engine = AdjointEngine(problem.network)
    arguments, steps = problem.arguments(), problem.steps
    return {
        "unrolled, group norm": lambda: unrolled_gradients(problem.plain, *arguments, steps),
        "unrolled": lambda: unrolled_gradients(problem.network, *arguments, steps),
        "adjoint": lambda: adjoint_gradients(problem.network, *arguments, steps),
        "adjoint, graphs kept": lambda: adjoint_gradients(
            problem.network, *arguments, steps, keep=len(steps)
        ),
        "captured": lambda: engine.gradients(*arguments, steps),
        "captured, compiled": kernels(problem),
        "reverse over forward": lambda: reverse_over_forward(problem),
        COMPILED: compiled(problem),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure everything."""
    options = parse(__doc__, arguments)
    bench = Bench("engine", options)
    tiny, device, width = bench.tiny, bench.device, 4 if options.tiny else 128
    os.environ.pop("ROBUSTDD_CAPTURE", None)
    sizes = TINY if tiny else SIZES
    images, count = next(iter(sizes.values()))
    exact = _float64(Problem(images, count, width, device, torch.float64, "none"))
    strategies = ("none",) if tiny else ("none", "color_crop_cutout_flip_scale_rotate")
    first = next(iter(sizes))

    def measure(name: str, strategy: str, chosen: Callable[[str], bool]) -> None:
        images, count = sizes[name]
        workload = name if strategy == "none" else f"{name}, DSA"
        compared = strategy == "none" and name == first
        problem = Problem(images, count, width, device, torch.float32, strategy)
        for variant, call in variants(problem).items():
            if not chosen(variant):
                continue

            def work(call: Callable[[], Gradients] = call) -> dict[str, float]:
                found = call()
                if not compared:
                    return {}
                return {
                    "image_gradient_error": relative(found.images, exact.images),
                    "alpha_gradient_error": relative(found.alpha, exact.alpha),
                    "loss": float(found.loss),
                }

            operations = count_operations(call) if variant == "adjoint" else None
            for arithmetic in ("tf32",) if tiny or variant != "captured" else ("tf32", "float32"):
                label = variant if arithmetic == "tf32" else f"{variant}, {arithmetic}"
                with precision(arithmetic, device):
                    bench.measure(
                        workload, label, work, items=count, unit="steps", repeats=5,
                        arithmetic=arithmetic, operations=operations,
                    )  # fmt: skip

    for strategy in strategies:
        for name in sizes:
            measure(name, strategy, lambda variant: variant != COMPILED)
    if not tiny:  # a minute of compiling, and nothing to learn from it at that size
        measure(first, "none", lambda variant: variant == COMPILED)
    bench.summary()


def _float64(problem: Problem) -> Gradients:
    with precision("float32", problem.start.device):
        return adjoint_gradients(problem.network, *problem.arguments(), problem.steps)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Trajectory matching: one distillation step of the public code against our engine.

The step of Cazenavette et al. 2022, section 3: a student starts at an expert's weights, takes N
steps of gradient descent on the distilled images with a learned rate, and the squared distance of
its end to the expert's later weights, over that of its start, is differentiated in the images and
the rate. The peer's loop is part of its script, not of a function; it is stated here again in our
words, over the peer's own network and its own flat-parameter module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from comparison import Call, Comparison, Prepared, Repository, Values, agreement, relative
from peer_results import Agreement
from torch import Tensor, nn
from variants import PEER, way

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.engine import AdjointEngine
from robustdd_bench.toolkit.trajectories.unroll import Step, matching_loss

REPOSITORY = Repository(
    name="mtt-distillation",
    url="https://github.com/GeorgeCazenavette/mtt-distillation",
    files=("reparam_module.py", "networks.py"),
)
CLASSES, RATE = 10, 0.01
CLOSE, FACTOR, FLIPS = 1e-9, 3, 0.01
NAMES = {"images": "gradient in the images", "rate": "gradient in the learning rate"}


Gradients = Callable[[Tensor, Tensor, list[Tensor]], dict[str, Tensor]]
"""(images, labels, the order of the images in each step) -> loss, gradients and last weights."""


def _peer_gradients(call: Call, width: int, start: Tensor, target: Tensor) -> Gradients:
    """By the public code's classes, in the precision of `start`."""
    sys.path.insert(0, str(call.peer))
    from networks import ConvNet  # type: ignore[import-not-found]
    from reparam_module import ReparamModule  # type: ignore[import-not-found]

    body = ConvNet(3, CLASSES, width, 3, "relu", "instancenorm", "avgpooling", (32, 32))
    network = ReparamModule(body.to(start.dtype)).train()

    def gradients(images: Tensor, labels: Tensor, orders: list[Tensor]) -> dict[str, Tensor]:
        x = images.clone().requires_grad_()
        rate = torch.tensor(RATE, dtype=start.dtype, requires_grad=True)
        theta = start.clone().requires_grad_()
        for order in orders:
            loss = F.cross_entropy(network(x[order], flat_param=theta), labels[order])
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - rate * slope
        distance = (theta - target).square().sum() / (start - target).square().sum()
        distance.backward()
        assert x.grad is not None
        assert rate.grad is not None
        return {
            "loss": distance.detach(),
            "images": x.grad,
            "rate": rate.grad,
            "theta": theta.detach(),
        }

    return gradients


def _our_gradients(call: Call, width: int, start: Tensor, target: Tensor) -> Gradients:
    """By the engine, in the precision of `start`."""
    with isolated_rng(0):
        body = convnet((3, 32, 32), CLASSES, width=width).to(start.dtype)
    how = way(call.side)
    network = FlatNetwork(nn.Sequential(nn.Identity(), body), compile=how.compile)
    engine = AdjointEngine(network, **how.engine)
    outer = matching_loss(start, target)

    def gradients(images: Tensor, labels: Tensor, orders: list[Tensor]) -> dict[str, Tensor]:
        steps = [Step(index=order) for order in orders]
        rate = torch.tensor(RATE, dtype=start.dtype)
        found = engine.gradients(images, labels, rate, start, outer, steps)
        return {
            "loss": found.loss,
            "images": found.images,
            "rate": found.alpha,
            "theta": found.theta,
        }

    return gradients


def _step(width: int, images: int, steps: int) -> Callable[[Call], Prepared]:
    def prepare(call: Call) -> Prepared:
        w, b, n = (8, 10, 2) if call.tiny else (width, images, steps)
        source = torch.Generator().manual_seed(0)
        with isolated_rng(0):
            body = convnet((3, 32, 32), CLASSES, width=w)
        start = FlatNetwork(nn.Sequential(nn.Identity(), body)).theta()
        x, y = torch.randn(b, 3, 32, 32, generator=source), torch.arange(b) % CLASSES
        target = start + 0.01 * torch.randn(start.shape, generator=source)
        orders = [torch.randperm(b, generator=source) for _ in range(n)]
        make = _peer_gradients if call.side == PEER else _our_gradients
        gradients = make(call, w, start, target)
        gradients(x[:2], y[:2], [torch.arange(2)])  # the first use of a kernel is nobody's

        def values(found: dict[str, Tensor]) -> Values:
            exact = make(call, w, start.double(), target.double())(x.double(), y, orders)
            return found | {f"{name} in float64": value for name, value in exact.items()}

        return Prepared(work=lambda: gradients(x, y, orders), values=values)

    return prepare


def _agree(side: str, theirs: list[Values], ours: list[Values]) -> list[Agreement]:
    """In float64 by rounding alone; in float32 by the peer's own error.

    A pre-activation within rounding of zero makes a ReLU flip in float32, and after 30 steps the
    gradient of the images is off by some thousandths on either side (with softplus for ReLU by 8e-7
    instead of 4e-3: W=32, B=50, N=30). So both errors are held against float64, and flips allowed.
    """
    a, b = ours[0], theirs[0]
    found = []
    for name, text in NAMES.items():
        exact = f"{name} in float64"
        found.append(
            agreement(
                side,
                f"{text}, in float64, relative difference",
                relative(a[exact], b[exact]),
                CLOSE,
            )
        )
        error = relative(b[name].double(), b[exact])
        found.append(
            agreement(
                side,
                f"{text}, in float32, relative error; at most {FACTOR} times the peer's own, or "
                f"{FLIPS:g}",
                relative(a[name].double(), b[exact]),
                max(FACTOR * error, FLIPS),
            )
        )
    return found


def _comparison(width: int, images: int, steps: int) -> Comparison:
    return Comparison(
        peer=REPOSITORY,
        text=f"one distillation step of MTT, ConvNet-3 W={width}, B={images}, N={steps}, 3x32x32",
        driven="ReparamModule and ConvNet; the loop of its script is stated again in the driver",
        prepare=_step(width, images, steps),
        agreement=_agree,
    )


COMPARISONS = {
    "mtt-w64-b50-n30": _comparison(64, 50, 30),
    "mtt-w128-b10-n20": _comparison(128, 10, 20),
}

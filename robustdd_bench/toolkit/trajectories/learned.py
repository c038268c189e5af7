"""What trajectory matching learns: images, the student's learning rate and, if asked, labels.

Each is one tensor with an optimiser of its own. The learning rate alpha can be neither negative
nor zero: in log space (ours) the parameter is a = log alpha, in linear space (the rule of
Cazenavette et al. 2022, whose public code lets alpha go negative) it is alpha, and after every step
the parameter is clamped to alpha in [1e-6, 1]. A NaN is not repaired: it ends the run.

Labels are y = softmax(v), v (n,K) the logits that are learned; they start where every image has
its own class with probability `label_confidence` and the others share the rest, or from logits that
are given. Labels that are assigned are not learned, but change with the iterations all the same.

What a method's `Rules` ask for is here as well: the average of the images, and iterations that move
nothing because their loss is above `loss_limit`. The latter is decided on the device. What such an
iteration leaves is what was there before it, momentum included; only Adam's count of steps, which
lies on the host, goes on.

Shapes: n distilled images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdd_bench.toolkit.fast.optimiser import Optimiser
from robustdd_bench.toolkit.trajectories.config import TrajectoryConfig
from robustdd_bench.toolkit.trajectories.rules import Rules
from robustdd_bench.toolkit.trajectories.unroll import Gradients

ALPHA_RANGE = (1e-6, 1.0)


def label_logits(labels: Tensor, num_classes: int, confidence: float) -> Tensor:
    """Logits (n,K) whose softmax gives each label (n,) the probability `confidence`."""
    own = math.log(confidence * (num_classes - 1) / (1 - confidence))
    return own * F.one_hot(labels, num_classes).float()


class Learned:
    """Images, alpha and labels, each with its optimiser.

    Args:
        config: learning rates, optimisers, spaces.
        images: what the images start from (n,C,H,W), in the network's input space.
        labels: hard labels (n,).
        num_classes: K.
        tensors: the state of an earlier run, as `state` gave it; empty for a new one.
        rules: of the method; by default MTT's.
        logits: what learned labels start from, or assigned ones are first taken from, (n,K); by
            default every image's own class.
    """

    def __init__(
        self,
        config: TrajectoryConfig,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        tensors: Mapping[str, Tensor],
        rules: Rules | None = None,
        logits: Tensor | None = None,
    ) -> None:
        self._rules = rules or Rules()
        self._log = config.alpha_space == "log"
        low, high = (math.log(x) for x in ALPHA_RANGE) if self._log else ALPHA_RANGE
        self._range = low, high
        first = math.log(config.alpha_init) if self._log else config.alpha_init
        self._hard = labels
        self._parameters = {
            "images": images,
            "alpha": torch.tensor(min(max(first, low), high), device=images.device),
        }
        if logits is None:
            logits = label_logits(labels, num_classes, config.label_confidence)
        if config.learn_labels:
            self._parameters["labels"] = logits.clone()
        if self._rules.assigned_labels:
            self._parameters["assigned"] = logits.softmax(1)
        if self._rules.image_ema:
            self._parameters["average"] = images.clone()
        for name in self._parameters:
            self._parameters[name] = tensors.get(name, self._parameters[name])
        self._optimisers = {
            name: Optimiser(kind, self._parameters[name], rate, momentum)
            for name, kind, rate, momentum in (
                ("images", config.image_optimiser, config.image_lr, config.image_momentum),
                ("alpha", config.alpha_optimiser, config.alpha_lr, config.alpha_momentum),
                (
                    "labels",
                    self._rules.label_optimiser,
                    config.label_lr,
                    self._rules.label_momentum,
                ),
            )
            if name in self._parameters
        }
        for name, optimiser in self._optimisers.items():
            optimiser.load(tensors, f"optimiser-{name}")

    @property
    def images(self) -> Tensor:
        """(n,C,H,W), in the network's input space."""
        return self._parameters["images"]

    @property
    def reported(self) -> Tensor:
        """The images of the set (n,C,H,W): their average, if there is one."""
        return self._parameters.get("average", self._parameters["images"])

    @property
    def labels(self) -> Tensor:
        """(n,) int64, or (n,K) float32 if labels are learned or assigned."""
        logits = self._parameters.get("labels")
        if logits is not None:
            return logits.softmax(1)
        return self._parameters.get("assigned", self._hard)

    def assign(self, labels: Tensor) -> None:
        """Take distributions (n,K) as labels, from now on."""
        self._parameters["assigned"] = labels

    @property
    def alpha(self) -> Tensor:
        """The student's learning rate, ()."""
        parameter = self._parameters["alpha"]
        return parameter.exp() if self._log else parameter.clone()

    def step(self, gradients: Gradients) -> None:
        """One step of every optimiser, and of the average."""
        if math.isinf(self._rules.loss_limit):
            self._step(gradients)
        else:
            before = {name: tensor.clone() for name, tensor in self.state().items()}
            self._step(gradients)
            moves = gradients.loss <= self._rules.loss_limit
            for name, tensor in self.state().items():
                if not name.endswith(".step"):
                    # A momentum that was not there before was zero.
                    old = before.get(name, torch.zeros_like(tensor))
                    tensor.copy_(torch.where(moves, tensor, old))
        if self._rules.image_ema:
            decay = self._rules.image_ema
            self._parameters["average"].mul_(decay).add_(self.images, alpha=1 - decay)

    def _step(self, gradients: Gradients) -> None:
        alpha, labels = self.alpha, self.labels
        self._optimisers["images"].step(gradients.images)
        self._optimisers["alpha"].step(gradients.alpha * alpha if self._log else gradients.alpha)
        if gradients.labels is not None and "labels" in self._optimisers:
            inner = (gradients.labels * labels).sum(1, keepdim=True)
            self._optimisers["labels"].step(labels * (gradients.labels - inner))
        self._parameters["alpha"].clamp_(*self._range)

    def state(self) -> dict[str, Tensor]:
        """Everything that goes on, for a checkpoint."""
        state = dict(self._parameters)
        for name, optimiser in self._optimisers.items():
            state |= optimiser.state(f"optimiser-{name}")
        return state

    def values(self) -> dict[str, Tensor]:
        """What must be finite."""
        return dict(self._parameters)

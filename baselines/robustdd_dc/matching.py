"""Gradient matching (Zhao, Mopuri and Bilen 2021, algorithm 1 with the released recipe).

Each iteration draws a new random network and repeats `outer` times:

1. for each class k, the cross-entropy of a real batch and that of the S synthetic images give
   gradients in the weights; d_k is their distance (`toolkit.distances.gradient_distance`);
2. z <- one step of SGD with momentum on sum_k d_k;
3. unless it is the last repetition, the network is trained `inner` epochs on the synthetic set.

The synthetic images z live in the network's input space, after the preprocessing layer, where the
paper's learning rate and its N(0,1) noise hold. d_k depends on the images of class k alone, so its
gradient is taken class by class: the sum's gradient exactly, with the memory of one class. (A
`torch.func.vmap` over classes gives the same to rounding; on two CPU cores it took 1.5 to 2.1
times as long.)

On a GPU the gradient of a class and the training step of the network are captured
(`toolkit.fast.capture`): one graph for each number of images and family of augmentations, which
serves every class. The class enters as indices of images and takes its labels from there; with the
class inside a graph there would be K times as many graphs, each captured anew, to save two copies
of a few numbers a replay.

Deviations: between the tabulated images per class the loop counts are those of the next larger
entry; the paper gives none. In networks with batch norm, batch statistics are used as they are; the
released code freezes them first.

Shapes: K classes, S images per class, R real images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustdd_bench.distillers import DistilledSet, DistillTask, Reporter
from robustdd_bench.toolkit.augment import put_drawn
from robustdd_bench.toolkit.batches import ClassSampler
from robustdd_bench.toolkit.distances import gradient_distance
from robustdd_bench.toolkit.dsa import Augmentation, AugmentationParams
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.fast.flat import Augment
from robustdd_bench.toolkit.inputspace import starting_images, to_pixels
from robustdd_bench.toolkit.loop import Distillation, iterate
from robustdd_bench.toolkit.random_networks import RedrawnNetwork

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""(outer, inner) of the paper, by images per class."""

_CHECK_EVERY = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What DC and DSA differ in, and what they share; see their configurations."""

    iterations: int
    outer: int
    inner: int
    init: Literal["noise", "real"]
    augmentation: Augmentation
    lr_img: float
    momentum: float
    lr_net: float
    batch_real: int
    batch_train: int
    checkpoint_seconds: float

    def loops(self, ipc: int) -> tuple[int, int]:
        """Image steps per network, and training epochs between them."""
        tabulated = LOOPS[min((s for s in LOOPS if s >= ipc), default=max(LOOPS))]
        return self.outer or tabulated[0], self.inner or tabulated[1]


def match_gradients(
    task: DistillTask, reporter: Reporter, recipe: Recipe, method: str
) -> DistilledSet:
    """Distil by gradient matching.

    Args:
        task: the task; state is kept in its `work_dir`.
        reporter: told the distance per class and image step of each iteration.
        recipe: hyper-parameters.
        method: names the state's file.

    Returns:
        K*S images in pixel space, ordered by class, with hard labels.

    Raises:
        UsageError: a class has fewer images than are asked for.
        RunFailedError: the images diverged.
    """
    ipc = task.required_ipc()
    if not task.allow_flip:
        recipe = replace(recipe, augmentation=recipe.augmentation.without("flip"))
    return iterate(
        _GradientMatching(task, recipe, ipc, reporter),
        task,
        reporter,
        title=method,
        total=recipe.iterations,
        key=f"{method} ipc={ipc} {task.seeds} {replace(recipe, checkpoint_seconds=0)}",
        checkpoint_seconds=recipe.checkpoint_seconds,
        check_every=_CHECK_EVERY,
    )


class _GradientMatching(Distillation):
    """The synthetic images z, and their velocity."""

    def __init__(self, task: DistillTask, recipe: Recipe, ipc: int, reporter: Reporter) -> None:
        self._task, self._recipe = task, recipe
        seed = task.seeds.seed("network", 0)
        network = RedrawnNetwork(task, seed, order=2, note=reporter.note)
        self._layer = network.layer
        self._labels = torch.arange(task.num_classes, device=task.device).repeat_interleave(ipc)
        self._z = starting_images(task, ipc, network.layer, recipe.init)
        self._velocity = torch.zeros_like(self._z)
        self._steps = _Steps(task, recipe, network, self._z, self._labels, reporter)

    def step(self, iteration: int) -> dict[str, Tensor]:
        """One network; reports the mean distance per class and image step."""
        recipe, seeds, steps = self._recipe, self._task.seeds, self._steps
        classes = self._task.num_classes
        outer, inner = recipe.loops(len(self._z) // classes)
        steps.begin(seeds.seed("network", iteration))
        for step in range(outer):
            source = seeds.generator("real", iteration, step)
            augment = seeds.generator("augmentation", iteration, step)
            gradient = steps.match(self._z, source, augment)
            self._velocity = recipe.momentum * self._velocity + gradient
            self._z = self._z - recipe.lr_img * self._velocity
            if step < outer - 1:
                steps.train(self._z, inner, seeds.generator("training", iteration, step))
        return {"distance": steps.distance / (outer * classes)}

    def state(self) -> dict[str, Tensor]:
        """Images and velocity."""
        return {"images": self._z, "velocity": self._velocity}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._z, self._velocity = state["images"], state["velocity"]

    def current(self) -> DistilledSet:
        """The set, in pixel space."""
        return DistilledSet(images=to_pixels(self._layer, self._z), labels=self._labels)


class _Steps:
    """The gradient of a class and the training step of the network.

    Every tensor of theirs stays where it is, so that they can be captured and replayed.
    """

    def __init__(
        self,
        task: DistillTask,
        recipe: Recipe,
        network: RedrawnNetwork,
        z: Tensor,
        labels: Tensor,
        reporter: Reporter,
    ) -> None:
        self._task, self._recipe, self._network, self._labels = task, recipe, network, labels
        self._sampler = ClassSampler(task.class_indices())
        self._members = torch.arange(len(z), device=z.device).chunk(task.num_classes)
        self._z, self._gradient = torch.empty_like(z), torch.zeros_like(z)
        self.distance = torch.zeros((), device=z.device)
        """Summed over classes and image steps since `begin`."""
        self._inputs = Inputs(z.device)
        changed = [*network.tensors(), self._gradient, self.distance]
        self._replayer = Replayer(z.device, changed, note=reporter.note)

    def begin(self, seed: int) -> None:
        """Start an iteration: with the network of a seed."""
        self._network.draw(seed)
        self.distance.zero_()

    def match(self, z: Tensor, source: torch.Generator, augment: torch.Generator) -> Tensor:
        """Add the distance of every class.

        Args:
            z: the synthetic images (K*S,C,H,W).
            source: draws the real images.
            augment: draws the siamese augmentation of each class.

        Returns:
            The sum's gradient in the images; it holds until the next call.
        """
        self._z.copy_(z)
        classes, count = range(self._task.num_classes), self._recipe.batch_real
        index, sizes = self._sampler.draw(classes, count, source)
        for real, made in zip(torch.split(index, sizes), self._members, strict=True):
            drawn = self._recipe.augmentation.draw(1, z.shape[2:], augment, siamese=True)
            self._match_class(real, made, drawn)
        return self._gradient

    def _match_class(self, real: Tensor, made: Tensor, params: AugmentationParams) -> None:
        real, made = self._inputs.put("real", real), self._inputs.put("made", made)
        augment = put_drawn(self._inputs, params)

        def step() -> None:
            pixels, z = self._task.pixels(real), self._z[made]
            label = self._labels[made[:1]]
            body = self._network.body
            distance, gradient = class_gradient(
                body, self._network.layer(pixels), z, label, augment
            )
            self.distance.add_(distance)
            self._gradient.index_copy_(0, made, gradient)

        self._replayer.run(("match", len(real), params.family), step)

    def train(self, z: Tensor, epochs: int, generator: torch.Generator) -> None:
        """Train the network in place on the synthetic set, by plain SGD.

        Each batch has one augmentation family, each of its images parameters of its own.
        """
        self._z.copy_(z)
        for _ in range(epochs):
            order = torch.randperm(len(z), generator=generator).to(z.device, non_blocking=True)
            for index in torch.split(order, self._recipe.batch_train):
                drawn = self._recipe.augmentation.draw(len(index), z.shape[2:], generator)
                self._train_on(index, drawn)

    def _train_on(self, index: Tensor, params: AugmentationParams) -> None:
        index = self._inputs.put("batch", index)
        augment = put_drawn(self._inputs, params)

        def step() -> None:
            body, x = self._network.body, self._z[index]
            logits = body(x if augment is None else augment(x))
            weights = [p for p in body.parameters() if p.requires_grad]
            loss = cross_entropy(logits, self._labels[index])
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        weight.add_(gradient, alpha=-self._recipe.lr_net)

        self._replayer.run(("train", len(index), params.family), step)


def class_gradient(
    body: nn.Module, real_RCHW: Tensor, z_SCHW: Tensor, label: Tensor, augment: Augment | None
) -> tuple[Tensor, Tensor]:
    """The distance of one class, and its gradient in the synthetic images.

    Args:
        body: the network after its preprocessing layer.
        real_RCHW: real images of the class in the network's input space.
        z_SCHW: the synthetic images of the class.
        label: the class, (1,).
        augment: the siamese augmentation of both.

    Returns:
        The distance (a scalar, detached) and its gradient (S,C,H,W).
    """
    # Biases and affine parameters contribute nothing to the distance.
    weights = [p for p in body.parameters() if p.ndim > 1]
    z = z_SCHW.detach().requires_grad_()

    def loss(images: Tensor) -> Tensor:
        logits = body(images if augment is None else augment(images))
        return cross_entropy(logits, label.expand(len(images)))

    target = torch.autograd.grad(loss(real_RCHW), weights)
    gradients = torch.autograd.grad(loss(z), weights, create_graph=True)
    distance = gradient_distance(target, gradients)
    return distance.detach(), torch.autograd.grad(distance, z)[0]

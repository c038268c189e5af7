"""Matching features of synthetic images to those of real ones, over networks in training.

Zhao et al. 2023 (IDM), as published; ROME changes the distance, the weights and the real images.
Each iteration:

1. The network that is due comes into the queue (`queues.networks`).
2. One network f of the queue is drawn. For each class k, one step of SGD with momentum on

       a D(mean f(A(z_k)), mean f(A(x_k))) + b acc_f CE(g(A(z_k)), k)

   where f are the features before the last linear layer, g the logits, z_k the synthetic images of
   the class (mosaics taken apart), x_k real ones, A one augmentation drawn for both, and acc_f the
   network's accuracy in per cent on what it was trained on. The network is in eval mode.
3. Some networks of the queue take steps of SGD on real batches of all classes.

The published code has one optimiser for all images and takes its step after each class, so the
images of K - 1 other classes go on by their momentum in each of these steps: per gradient an image
takes K steps of SGD, K - 1 of them with momentum alone. Their sum is a geometric series, and the
loss of a class depends on its own images alone; so here gradients of many classes are taken at
once, and the momentum's share of an image's way is added before and after. That is the same
iterate, but for rounding.

Deviation: for one image per class without mosaics the published code takes those real images that
the network finds easiest, and the cross-entropy of wrong images alone; that is left out.

Shapes: K classes, S stored images per class, f tiles a side, F features, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustdd_bench.distillers import DistilledSet, DistillTask, Reporter
from robustdd_bench.toolkit.augment import GroupedAugment, draw_grouped
from robustdd_bench.toolkit.batches import ClassSampler
from robustdd_bench.toolkit.distances import class_means
from robustdd_bench.toolkit.dsa import Augmentation
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.inputspace import features, features_and_logits, to_pixels
from robustdd_bench.toolkit.loop import Distillation, iterate
from robustdd_bench.toolkit.mosaics import decode_inputs, starting_mosaics
from robustdd_bench.toolkit.operations import Facts, MakingOperations
from robustdd_bench.toolkit.queues.config import QueueConfig
from robustdd_bench.toolkit.queues.networks import NetworkQueue

_CHECK_EVERY = 100

Attack = Callable[[nn.Module, nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""`attack(layer, body, x_BCHW, labels, generator)`: other images in the network's input space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueObjective:
    """What is matched, and how much each part weighs."""

    distance: Callable[[Tensor, Tensor], Tensor]
    """Of class means of features (K,F), synthetic and real: one number a class, (K,)."""
    feature_weight: float
    """a."""
    ce_weight: float
    """b."""
    attack: Attack | None = None
    """What becomes of real images before they are matched and trained on; None: nothing."""


def distil_over_queue(
    task: DistillTask,
    reporter: Reporter,
    config: QueueConfig,
    objective: QueueObjective,
    method: str,
) -> DistilledSet:
    """Distil over a queue of networks.

    Args:
        task: the task; state is kept in its `work_dir`.
        reporter: told loss and accuracy of the network of each iteration.
        config: hyper-parameters.
        objective: what is matched.
        method: names the state's file.

    Returns:
        K*S images in pixel space, ordered by class, mosaics as they are.

    Raises:
        UsageError: a class has fewer images than are asked for, or tiles do not fit.
        RunFailedError: the images or a network diverged.
    """
    ipc = task.required_ipc()
    augmentation = Augmentation.parse(config.augmentation)
    if not task.allow_flip:
        augmentation = augmentation.without("flip")
    return iterate(
        _QueueMatching(task, config, objective, augmentation, ipc, reporter),
        task,
        reporter,
        title=method,
        total=config.iterations,
        key=f"{method} ipc={ipc} {task.seeds} {augmentation} "
        f"{replace(config, checkpoint_seconds=0.0)} {task.threat}",
        checkpoint_seconds=config.checkpoint_seconds,
        check_every=_CHECK_EVERY,
    )


def queue_operations(config: QueueConfig, attack_steps: int, facts: Facts) -> MakingOperations:
    """Floating-point operations; see `robustdd_bench.toolkit.operations`.

    Args:
        config: hyper-parameters.
        attack_steps: gradients in the images that an attack takes.
        facts: of the track.
    """
    real = facts.classes * min(config.batch_real, facts.train // facts.classes)
    search = attack_steps * facts.network.pixels
    matching = real * (facts.network.forward + search)
    matching += facts.images * config.mosaic**2 * facts.input.pixels
    seen = config.train_networks * config.train_steps * min(config.train_batch, facts.train)
    training = seen * (facts.network.weights + search)
    return MakingOperations(distill=config.iterations * (matching + training))


class _QueueMatching(Distillation):
    """The synthetic images z, their velocity, and the queue.

    Every tensor of a captured step stays where it is.
    """

    def __init__(
        self,
        task: DistillTask,
        config: QueueConfig,
        objective: QueueObjective,
        augmentation: Augmentation,
        ipc: int,
        reporter: Reporter,
    ) -> None:
        self._task, self._config, self._objective = task, config, objective
        self._augmentation, self._done = augmentation, 0
        self._queue = NetworkQueue(
            task,
            start=config.networks_start,
            fresh_every=config.fresh_every,
            capacity=config.networks_max,
            iterations=config.iterations,
            note=reporter.note,
        )
        classes, device = task.num_classes, task.device
        self._labels = torch.arange(classes, device=device).repeat_interleave(ipc)
        layer = self._queue.layer
        self._images = z = starting_mosaics(task, ipc, layer, config.init, config.mosaic)
        self._velocity = torch.zeros_like(z)
        order = torch.arange(classes).repeat_interleave(ipc).view(-1, 1, 1, 1)
        ahead, behind = order, classes - 1 - order
        self._coasts = [coasting(config.momentum, n, z) for n in (ahead, behind)]
        self._sampler = ClassSampler(task.class_indices())
        self._members = torch.arange(len(z), device=device).view(classes, -1)
        self._z, self._gradient = torch.empty_like(z), torch.zeros_like(z)
        self._loss = torch.zeros((), device=device)
        self._noise = torch.Generator(device=device)
        self._inputs = Inputs(device)
        self._replayer = Replayer(
            device,
            [*self._queue.changing(), self._gradient, self._loss],
            () if objective.attack is None else (self._noise,),
            reporter.note,
        )

    def step(self, iteration: int) -> dict[str, Tensor]:
        """A step of the images of each class, then of networks."""
        config, seeds = self._config, self._task.seeds
        if iteration and iteration % config.meter_every == 0:
            self._queue.reset_accuracies()
        numbers = self._queue.begin(iteration)
        choice = seeds.generator("choice", iteration)
        # One stream of noise an iteration, so that none has to be saved.
        self._noise.manual_seed(seeds.seed("attack", iteration))
        (drawn,) = _some(numbers, 1, choice)
        self._queue.load(drawn)
        accuracy = self._queue.accuracy()
        self._match(iteration, accuracy)
        source = seeds.generator("training", iteration)
        for number in _some(numbers, config.train_networks, choice):
            self._train(number, source)
        self._done = iteration + 1
        return {"loss": self._loss / self._task.num_classes, "network_accuracy": accuracy / 100}

    def state(self) -> dict[str, Tensor]:
        """Images, velocity and the queue."""
        queue = self._queue.state(self._done)
        return {"images": self._images, "velocity": self._velocity, **queue}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._images, self._velocity = state["images"], state["velocity"]
        self._queue.restore(state)

    def current(self) -> DistilledSet:
        """The set, in pixel space; mosaics as they are stored."""
        pixels = to_pixels(self._queue.layer, self._images)
        return DistilledSet(images=pixels, labels=self._labels, mosaic=self._config.mosaic)

    def _match(self, iteration: int, accuracy: Tensor) -> None:
        """One step of SGD of each class's images."""
        config, seeds, classes = self._config, self._task.seeds, self._task.num_classes
        self._coast(0)
        source = seeds.generator("real", iteration)
        augment = seeds.generator("augmentation", iteration)
        self._z.copy_(self._images)
        self._loss.zero_()
        weight = self._inputs.put("weight", self._objective.ce_weight * accuracy)
        for first in range(0, classes, config.classes_at_once):
            last = min(first + config.classes_at_once, classes)
            self._add(range(first, last), source, augment, weight)
        self._velocity = config.momentum * self._velocity + self._gradient
        self._images = self._images - config.lr_img * self._velocity
        self._coast(1)

    def _coast(self, when: int) -> None:
        """Go on by momentum while the classes before (0) or after (1) take their steps."""
        way, left = self._coasts[when]
        self._images = self._images - self._config.lr_img * way * self._velocity
        self._velocity = left * self._velocity

    def _add(
        self, classes: range, source: torch.Generator, generator: torch.Generator, weight: Tensor
    ) -> None:
        """Add the loss of some classes, and put in place the gradient of their images."""
        index, sizes = self._sampler.draw(classes, self._config.batch_real, source)
        real = self._inputs.put("real", index)
        made = self._inputs.put("made", self._members[classes.start : classes.stop].flatten())
        inputs = self._inputs if self._replayer.static else None
        shape = self._z.shape[2:]
        augment = draw_grouped(self._augmentation, len(classes), shape, generator, inputs)
        queue, objective = self._queue, self._objective

        def step() -> None:
            queue.freeze()
            x = augment(queue.layer(self._task.pixels(real)), sizes)
            if objective.attack is not None:
                y = self._task.labels[real]
                x = objective.attack(queue.layer, queue.body, x, y, self._noise)
            loss, gradient = queue_gradient(
                queue.layer,
                queue.body,
                x,
                sizes,
                self._z[made],
                self._labels[made],
                objective,
                weight,
                augment,
                self._config.mosaic,
            )
            self._loss.add_(loss)
            self._gradient.index_copy_(0, made, gradient)

        self._replayer.run(("match", tuple(sizes)), step)

    def _train(self, number: int, source: torch.Generator) -> None:
        """Some steps of a network of the queue."""
        config, queue = self._config, self._queue
        queue.load(number)
        for _ in range(config.train_steps):
            batch = torch.randperm(len(self._task.images), generator=source)[: config.train_batch]
            where = self._inputs.put("batch", batch)

            def step(where: Tensor = where) -> None:
                queue.freeze()
                x, y = queue.layer(self._task.pixels(where)), self._task.labels[where]
                if self._objective.attack is not None:
                    x = self._objective.attack(queue.layer, queue.body, x, y, self._noise)
                queue.train_on(
                    x.detach(),
                    y,
                    rate=config.lr_net,
                    momentum=config.momentum_net,
                    weight_decay=config.weight_decay,
                )

            self._replayer.run(("train", len(batch)), step)
        queue.store(number)


def queue_gradient(
    layer: nn.Module,
    body: nn.Module,
    real_BCHW: Tensor,
    sizes: Sequence[int],
    z_BCHW: Tensor,
    labels: Tensor,
    objective: QueueObjective,
    weight: Tensor,
    augment: GroupedAugment,
    mosaic: int,
) -> tuple[Tensor, Tensor]:
    """The loss summed over some classes, and its gradient in their stored images.

    Args:
        layer: the preprocessing layer.
        body: the network after it, frozen and in eval mode.
        real_BCHW: real images as they are matched, in the network's input space, class after class.
        sizes: real images of each class.
        z_BCHW: stored images in the network's input space, the same number of each class, class
            after class.
        labels: of these.
        objective: what is matched.
        weight: of the cross-entropy, a scalar: `ce_weight` times the network's accuracy.
        augment: given images class after class, and how many there are of each, augments them.
        mosaic: tiles a side of a stored image.

    Returns:
        The loss (a scalar, detached) and its gradient, of the shape of z.
    """
    z, kinds = z_BCHW.detach().requires_grad_(), len(sizes)
    each = len(z) // kinds
    decoded = decode_inputs(layer, z, mosaic)
    # Tile after tile, to class after class.
    by_class = decoded.view(-1, kinds, each, *decoded.shape[1:]).transpose(0, 1).flatten(0, 2)
    count = each * mosaic**2
    targets = labels.view(kinds, each)[:, :1].expand(-1, count).flatten()
    with torch.no_grad():
        real = class_means(features(body, real_BCHW), sizes)
    made, logits = features_and_logits(body, augment(by_class, [count] * kinds))
    distance = objective.distance(class_means(made, [count] * kinds), real).sum()
    wrong = cross_entropy(logits, targets, reduction="sum") / count
    loss = objective.feature_weight * distance + weight * wrong
    return loss.detach(), torch.autograd.grad(loss, z)[0]


def coasting(momentum: float, steps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """What momentum alone does in some steps of SGD, as factors of the velocity.

    Args:
        momentum: m.
        steps: how many steps, n, of any shape.
        like: gives device and floating type.

    Returns:
        m + ... + m^n, which times the learning rate is the way; and m^n, what is left.
    """
    left = torch.as_tensor(momentum, dtype=torch.float64) ** steps.double()
    way = momentum * (1 - left) / (1 - momentum)
    return way.to(like), left.to(like)


def _some(numbers: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Up to `count` of the numbers, without repetition, in a random order."""
    order = torch.randperm(len(numbers), generator=generator)[:count]
    return [numbers[place] for place in order.tolist()]

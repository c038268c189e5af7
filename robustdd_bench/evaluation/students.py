"""Students: fresh networks trained on a distilled set, by the track's recipe.

SGD with momentum and weight decay and one drop of the learning rate, or AdamW with a cosine, on
shuffled batches; the LAST iterate is what is reported, never the best on any split. The whole set
lives on the device and no step waits for the host. Steps are captured on a GPU; on the CPU compiled
kernels may compute them.

Where the track asks for it, images are mixed with one another, and a teacher that is stored with
the set labels what students see (`robustdd_bench.evaluation.teaching`).

Where the track asks for it, training is adversarial: PGD-AT (Madry et al. 2018) or TRADES (Zhang et
al. 2019). The adversary moves pixels of the set and sees the augmentation drawn for the batch. A
distilled image may lie outside [0,1]; its adversarial examples then keep to the eps-ball around it
and to [0,1] extended to that image's own range, so that the image itself is always among them
(a clamp to [0,1] would train on other images than the set's). Adversarial examples are searched in
eval mode, as TRADES has it: batch norm counts only what is trained on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.attacks import Norm, ThreatModel
from robustdd_bench.distillers import DistilledSet, Reporter
from robustdd_bench.errors import RunFailedError
from robustdd_bench.evaluation.teaching import Mix, draw_mix, taught_loss
from robustdd_bench.evaluation.updates import Update, rate_at
from robustdd_bench.protocol.tracks import AdversarialSpec, StudentSpec
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import Adversary, attack_batch, robust_loss
from robustdd_bench.toolkit.augment import Augmenter, put_drawn
from robustdd_bench.toolkit.fast.blocks import compiled
from robustdd_bench.toolkit.fast.capture import Inputs, Replayer
from robustdd_bench.toolkit.fast.compile import SAMPLE, trusted
from robustdd_bench.toolkit.fast.flat import Augment


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """A trained network and how its training ended."""

    network: nn.Module
    steps: int
    learning_rate: float
    final_loss: float
    train_accuracy: float

    def sha256(self) -> str:
        """Hash of every weight."""
        return weights_sha256(self.network)


def weights_sha256(network: nn.Module) -> str:
    """Hash of every weight and buffer of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def total_steps(spec: StudentSpec, images: int) -> int:
    """Optimiser steps of a student that trains on so many images (of mosaics: their tiles)."""
    steps = spec.epochs * -(-images // spec.batch_size)
    return steps if spec.max_steps is None else min(steps, spec.max_steps)


def train_student(
    network: nn.Module,
    distilled: DistilledSet,
    spec: StudentSpec,
    seeds: Seeds,
    index: int,
    *,
    flip: bool,
    reporter: Reporter,
    norm: Norm = "Linf",
    teacher: nn.Module | None = None,
    compile: bool = False,
) -> TrainedStudent:
    """Train one student on a distilled set.

    Args:
        network: `nn.Sequential(preprocessing, network)`, freshly initialised, on its device.
        distilled: the set; its own learning rate and augmentation go before the track's. Mosaics
            are taken apart first.
        spec: the track's recipe.
        seeds: seeds without the method, so that all methods share them.
        index: which student.
        flip: whether mirrored images keep their label.
        reporter: progress.
        norm: norm of the adversary, where the recipe has one.
        teacher: the set's teacher on the student's device, from the input behind the preprocessing
            layer to logits, where the recipe has students taught by one.
        compile: whether compiled kernels compute the training; the student is the same network.

    Raises:
        RunFailedError: the loss or a weight became NaN or infinite.
    """
    device = next(network.parameters()).device
    rate = (distilled.learning_rate if spec.own_rate else None) or spec.learning_rate
    order = seeds.generator("student-order", index)
    augmenter = Augmenter(
        distilled.augmentation or spec.augmentation,
        seeds.generator("student-augment", index),
        flip=flip,
    )
    noise = seeds.generator("student-adversary", index, device=device)
    images, labels = (tensor.to(device) for tensor in distilled.decoded())
    training = _Training(network, images, labels, spec, norm, noise, reporter, compile, teacher)
    mixing = seeds.generator("student-mix", index)
    steps = total_steps(spec, len(images))
    batches: list[Tensor] = []
    with reporter.progress(f"student {index}", steps) as progress:
        for step in range(steps):
            if not batches:
                shuffled = torch.randperm(len(images), generator=order).to(device)
                batches = list(shuffled.split(spec.batch_size))
            batch = batches.pop(0)
            mix = None
            if spec.mix is not None:
                mix = draw_mix(spec.mix, len(batch), images.shape[-2:], mixing)
            training.step(batch, augmenter, mix, rate_at(spec, rate, step, steps))
            progress.advance()
    network.eval()
    final = float(training.loss)
    # The loss is that of the last step's start; its end can be infinite all the same.
    finite = all(bool(torch.isfinite(p).all()) for p in network.parameters())
    if not math.isfinite(final) or not finite:
        raise RunFailedError(
            f"student {index} diverged (loss {final}) at learning rate {rate:g}; "
            "the distilled set's learning rate does not fit the track's recipe"
        )
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return TrainedStudent(network, steps, rate, final, _accuracy(network, images, labels))


class _Training:
    """One student's training, on its own weights.

    Every tensor stays where it is, so that the step can be captured and replayed.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        spec: StudentSpec,
        norm: Norm,
        noise: torch.Generator,
        reporter: Reporter,
        compile: bool,
        teacher: nn.Module | None,
    ) -> None:
        assert isinstance(network, nn.Sequential)
        self._network, self._images, self._labels = network.train(), images, labels
        # Of the same weights, which are moved in place.
        self._fast = nn.Sequential(network[0], compiled(network[1])) if compile else None
        self._note = reporter.note
        self._spec, self._norm, self._noise = spec, norm, noise
        self._weights = [p for p in network.parameters() if p.requires_grad]
        self._teacher = teacher if spec.teaching is not None else None
        self.loss = torch.zeros((), device=images.device)
        self._inputs = Inputs(images.device)
        self._update = Update(spec, [p.detach() for p in self._weights], self._inputs)
        changed = [p.detach() for p in self._weights] + self._update.state + [self.loss]
        cuda = images.device.type == "cuda"
        self._replayer = Replayer(
            images.device,
            [*changed, *network.buffers()],
            (noise,) if cuda and spec.adversarial else (),
            reporter.note,
        )

    def step(self, batch: Tensor, augmenter: Augmenter, mix: Mix | None, rate: float) -> None:
        """One step on the images at `batch` (B,), with one augmentation of `augmenter`."""
        size = len(batch)
        params = augmenter.params(size, self._images.shape[-2:])
        where = self._inputs.put("batch", batch)
        augment = put_drawn(self._inputs, params)
        mix = mix and mix.put(self._inputs)
        key = size, params.family, *self._update.ready(rate)
        if self._fast is not None:
            self._hold(self._fast, where[:SAMPLE])
        self._replayer.run(key, lambda: self._step(where, augment, mix))

    def _hold(self, fast: nn.Sequential, where: Tensor) -> None:
        """Hold the first compiled gradients against eager ones, and compute with those."""

        def compute(network: nn.Sequential) -> tuple[Tensor, ...]:
            network.eval()  # running statistics are left alone
            x = self._images[where].requires_grad_()
            loss = F.cross_entropy(network(x), self._labels[where])
            found = torch.autograd.grad(loss, [x, *self._weights], allow_unused=True)
            network.train()
            return tuple(gradient for gradient in found if gradient is not None)

        eager = self._network
        assert isinstance(eager, nn.Sequential)
        if trusted(lambda: compute(fast), lambda: compute(eager), self._note):
            self._network = fast
        self._fast = None

    def _step(self, where: Tensor, augment: Augment | None, mix: Mix | None) -> None:
        spec, network = self._spec, self._network
        x, y = self._images[where], self._labels[where]
        model = _Augmented(network[0], network[1], augment)
        if mix is not None or self._teacher is not None:
            view = model.view(x)
            view = view if mix is None else mix.images(view)
            loss = taught_loss(network[1](view), view, y, mix, spec.teaching, self._teacher)
        elif spec.adversarial is None:
            loss = F.cross_entropy(model(x), y)
        else:
            loss = _adversarial_loss(
                network, model, x, y, spec.adversarial, self._norm, self._noise
            )
        gradients = torch.autograd.grad(loss, self._weights, allow_unused=True)
        with torch.no_grad():
            self.loss.copy_(loss)
            self._update.apply(gradients)


class _Augmented:
    """A student behind the augmentation of one batch: pixels to logits."""

    def __init__(self, preprocess: nn.Module, body: nn.Module, augment: Augment | None) -> None:
        self._preprocess = preprocess
        self._body = body
        self._augment = augment

    def view(self, pixels: Tensor) -> Tensor:
        """What the network behind the preprocessing layer sees."""
        features: Tensor = self._preprocess(pixels)
        return features if self._augment is None else self._augment(features)

    def __call__(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self._body(self.view(pixels))
        return logits


def _adversarial_loss(
    network: nn.Module,
    model: _Augmented,
    x: Tensor,
    y: Tensor,
    spec: AdversarialSpec,
    norm: Norm,
    generator: torch.Generator,
) -> Tensor:
    adversary = Adversary(
        threat=ThreatModel(norm, spec.eps),
        steps=spec.steps,
        step_size=spec.relative_step * spec.eps,
        extend_box=True,
    )
    network.eval()
    attacked = attack_batch(spec.flavour, model, x, y, adversary, generator)
    network.train()
    return robust_loss(spec.flavour, model, x, attacked, y, spec.beta)


def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    hard = labels.argmax(1) if labels.ndim == 2 else labels
    hits = torch.zeros((), device=images.device)
    with torch.no_grad():
        for x, y in zip(images.split(1024), hard.split(1024), strict=True):
            hits += (network(x).argmax(1) == y).sum()
    return float(hits) / len(images)

"""Training a teacher on the real data, once for all runs that want the same one.

SGD with momentum and weight decay, the learning rate falling as a cosine, epoch by epoch; the last
iterate is kept. It is stored in a folder named by a hash of everything that shaped it, which runs
share. An interrupted training resumes at its last epoch that was saved.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.attacks import Norm, ThreatModel
from robustdd_bench.distillers import DistillTask, Part, Reporter
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.protocol.teachers import Teacher
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import Adversary, attack_batch
from robustdd_bench.toolkit.augment import Augmenter
from robustdd_bench.toolkit.checkpoint import Checkpoint
from robustdd_bench.toolkit.dsa import Augmentation, apply
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.stored import key_of, training_facts
from robustdd_bench.toolkit.teachers.config import TeacherRecipe
from robustdd_bench.toolkit.teachers.penalties import cure_penalty, difference_penalty

# Raise when a change of the code below changes teachers, so that stored ones are not reused.
TRAINER_VERSION = 1
_FORMAT = "robustdd-teacher-1"
_SAVE_SECONDS = 30.0
_BATCH = 1024


class TeacherStore:
    """The stored teacher of one recipe on one task.

    Args:
        task: gives data, networks, seeds, device and the shared folder.
        recipe: how it is trained.
        seeds: of the training; by default those that all methods with teachers share, so that two
            methods with the same recipe have the same teacher.

    Raises:
        UsageError: there is no such network.
    """

    def __init__(
        self, task: DistillTask, recipe: TeacherRecipe, seeds: Seeds | None = None
    ) -> None:
        self.task, self.recipe = task, recipe
        self.seeds = seeds or Seeds(task.seeds.base, task.seeds.track, "teacher")
        self._network = task.registered_network(recipe.network, recipe.options)
        self.key = key_of(self._description())
        self.folder = task.store_dir / "teachers" / self.key

    def _description(self) -> dict[str, Any]:
        return {
            "trainer": TRAINER_VERSION,
            "recipe": self.recipe.description(),
            **training_facts(self.task, self.seeds, self._network(0)),
        }

    @property
    def part(self) -> Part:
        """The training, as a part that comes before the distillation."""
        return Part("teacher", self.folder / "teacher.safetensors")

    def train(self, reporter: Reporter) -> None:
        """Train it and write its file.

        Raises:
            RunFailedError: the training diverged.
        """
        network = _trained(self.task, self.recipe, self._network, self.seeds, self.key, reporter)
        body = split_network(network)[1]
        teacher = Teacher.of(self.recipe.network, self.recipe.options, body)
        metadata = {
            "format": _FORMAT,
            "description": json.dumps(self._description(), sort_keys=True),
            "train_accuracy": f"{_accuracy(network, self.task):.6f}",
        }
        write_safetensors(self.part.output, teacher.weights, metadata)

    def load(self) -> tuple[nn.Module, Teacher]:
        """The trained network (pixels to logits) in eval mode and frozen, and what is stored of it.

        Raises:
            UsageError: it is missing or damaged.
        """
        path = self.part.output
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != _FORMAT:
            raise UsageError(f"{path} is not a stored teacher; delete it")
        teacher = Teacher(
            network=self.recipe.network, options=dict(self.recipe.options), weights=tensors
        )
        network = self._network(0)
        try:
            body = teacher.load_into(split_network(network)[1])
        except UsageError as error:
            raise UsageError(f"{path}: {error}; delete it") from error
        body.to(self.task.device)
        return network.eval().requires_grad_(False), teacher


def _trained(
    task: DistillTask,
    recipe: TeacherRecipe,
    build: Any,
    seeds: Seeds,
    key: str,
    reporter: Reporter,
) -> nn.Module:
    network: nn.Module = build(seeds.seed("teacher-init"))
    layer, body = split_network(network)
    weights = [p for p in body.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        weights,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    # Kept by hand, since the optimiser makes its own at the first step.
    velocities = [torch.zeros_like(p) for p in weights]
    for weight, velocity in zip(weights, velocities, strict=True):
        optimiser.state[weight]["momentum_buffer"] = velocity
    checkpoint = Checkpoint(task.work_dir / "teacher.safetensors", _SAVE_SECONDS, key)
    saved, done = checkpoint.load(task.device), 0
    if saved is not None:
        done, state = saved
        _restore(body, velocities, state)
    loss = torch.zeros((), device=task.device)
    with reporter.progress("teacher", recipe.epochs) as progress:
        progress.advance(done)
        for epoch in range(done, recipe.epochs):
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
            optimiser.param_groups[0]["lr"] = rate
            loss = _epoch(task, recipe, layer, body, optimiser, seeds, epoch)
            now = float(loss)
            finite = all(bool(torch.isfinite(p).all()) for p in weights)
            if not math.isfinite(now) or not finite:
                raise RunFailedError(
                    f"the teacher diverged in epoch {epoch + 1} (loss {now}); lower teacher_lr"
                )
            reporter.metrics(epoch + 1, teacher_loss=now)
            checkpoint.maybe_save(epoch + 1, _state(body, velocities))
            progress.advance()
    reporter.work((recipe.epochs - done) * len(task.labels), "images")
    return network.eval().requires_grad_(False)


def _epoch(
    task: DistillTask,
    recipe: TeacherRecipe,
    layer: nn.Module,
    body: nn.Module,
    optimiser: torch.optim.Optimizer,
    seeds: Seeds,
    epoch: int,
) -> Tensor:
    """One pass over the training images; the mean loss, on the device."""
    order = torch.randperm(len(task.labels), generator=seeds.generator("teacher-order", epoch))
    augmenters = _augmenters(recipe, task, seeds.generator("teacher-augment", epoch))
    noise = seeds.generator("teacher-adversary", epoch, device=task.device)
    total, batches = torch.zeros((), device=task.device), order.split(recipe.batch_size)
    body.train()
    for batch in batches:
        index = batch.to(task.device, non_blocking=True)
        pixels, y = task.pixels(index), task.labels[index]
        drawn = [a.params(len(batch), pixels.shape[-2:]).to(task.device) for a in augmenters]

        def seen(point: Tensor, drawn: list[Any] = drawn) -> Tensor:
            x: Tensor = layer(point)
            for params in drawn:
                x = apply(x, params)
            return x

        loss = _loss(recipe, body, seen, pixels, y, noise)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        total += loss.detach()
    return total / len(batches)


def _loss(
    recipe: TeacherRecipe,
    body: nn.Module,
    seen: Any,
    pixels: Tensor,
    y: Tensor,
    noise: torch.Generator,
) -> Tensor:
    if recipe.penalty in ("pgd", "fast"):
        norm: Norm = "L2" if recipe.norm == "L2" else "Linf"
        adversary = Adversary(
            threat=ThreatModel(norm, recipe.eps),
            steps=recipe.attack_steps,
            step_size=recipe.attack_step_size,
        )
        body.eval()
        pixels = attack_batch(
            recipe.penalty, lambda point: body(seen(point)), pixels, y, adversary, noise
        )
        body.train()
        return F.cross_entropy(body(seen(pixels)), y)
    x = seen(pixels)
    loss = F.cross_entropy(body(x), y)
    if recipe.penalty in ("cure", "difference"):
        penalty = cure_penalty if recipe.penalty == "cure" else difference_penalty
        body.eval()
        loss = loss + penalty(body, x, y, weight=recipe.weight, radius=recipe.radius)
        body.train()
    return loss


def _augmenters(
    recipe: TeacherRecipe, task: DistillTask, source: torch.Generator
) -> list[Augmenter]:
    families = Augmentation.parse(recipe.augmentation).families
    kept = [family for family in families if task.allow_flip or family != "flip"]
    return [Augmenter(family, source) for family in kept]


def _state(body: nn.Module, velocities: list[Tensor]) -> dict[str, Tensor]:
    momenta = {f"velocity.{i}": velocity for i, velocity in enumerate(velocities)}
    return {f"network.{name}": t for name, t in body.state_dict().items()} | momenta


def _restore(body: nn.Module, velocities: list[Tensor], state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in body.state_dict().items():
            tensor.copy_(state[f"network.{name}"])
        for i, velocity in enumerate(velocities):
            velocity.copy_(state[f"velocity.{i}"])


def _accuracy(network: nn.Module, task: DistillTask) -> float:
    """On the training images, without augmentation."""
    hits = torch.zeros((), device=task.device)
    with torch.no_grad():
        for where in torch.arange(len(task.labels), device=task.device).split(_BATCH):
            hits += (network(task.pixels(where)).argmax(1) == task.labels[where]).sum()
    return float(hits) / len(task.labels)

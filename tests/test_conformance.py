"""The shipped checks: good plugins pass all of them, each bad one fails exactly what it should."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from commands import press_ctrl_c
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, AttackResult, AttackTask, ThreatModel
from robustdd_bench.conformance import Finding, check_attack, check_distiller
from robustdd_bench.conformance.findings import FailedCheckError, Interruption, run_checks
from robustdd_bench.conformance.surroundings import generator_states
from robustdd_bench.distillers import (
    DistilledSet,
    Distiller,
    DistillTask,
    Part,
    Reporter,
    StagedDistiller,
)
from robustdd_bench.errors import UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.guard.libraries import GROUPS
from robustdd_bench.guard.settings import SavedSettings
from robustdd_bench.plugins import Entry, collect, get_plugin_manager
from robustdd_bench.seeds import ExampleGenerator


def _entry(plugged: type[Any], kind: str) -> Entry:
    return Entry(kind, "mine", f"{__name__}:{plugged.__qualname__}", "", "me")


def _failed(findings: list[Finding]) -> dict[str, str]:
    for finding in findings:
        assert finding.detail
        assert "\n" not in finding.detail
    return {finding.check: finding.detail for finding in findings if not finding.passed}


# --- distillers ------------------------------------------------------------------------------


class Descent(Distiller):
    """A good, iterative, resumable distiller: random images drawn towards the mean of a class."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        steps: int = 4
        rate: float = 0.25

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ValueError(f"steps must be positive, not {self.steps}")

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        state = task.work_dir / "state.safetensors"
        images, labels = task.real_images(task.ipc or 1, task.seeds.generator("start"))
        start = 0
        if state.exists():
            tensors, metadata = read_safetensors(state)
            images, start = tensors["images"], int(metadata["step"])
        means = torch.stack([task.pixels(index).mean(0) for index in task.class_indices()])
        with reporter.progress("descent", self.config.steps) as bar:
            for step in range(start, self.config.steps):
                noise = self.noise(task, step, images)
                images = images + self.config.rate * (means[labels] - images) + noise
                write_safetensors(state, {"images": images}, {"step": str(step + 1)})
                reporter.metrics(step, size=images.norm())
                bar.advance()
        return self.finish(images, labels, task)

    def noise(self, task: DistillTask, step: int, images: Tensor) -> Tensor:
        generator = task.seeds.generator("noise", step)
        return 0.01 * torch.randn(images.shape, generator=generator)

    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        return DistilledSet(images=images, labels=labels, provenance={"steps": self.config.steps})


class Real(Distiller):
    """A good distiller without steps, reports or randomness."""

    @dataclass(frozen=True)
    class Config:
        pass

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        index = torch.cat([found[: task.ipc] for found in task.class_indices()])
        return DistilledSet(images=task.pixels(index), labels=task.labels[index])


class Everything(Real):
    """A reference: all images, whatever was asked for."""

    reference: ClassVar[bool] = True

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        return DistilledSet(images=task.pixels(), labels=task.labels)


class Soft(Descent):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        soft = torch.nn.functional.one_hot(labels, 3).float() * 0.7 + 0.1
        return DistilledSet(images=images, labels=soft, learning_rate=0.1)


class Staged(StagedDistiller):
    """A good distiller in parts: each makes the images of one class."""

    Config = Real.Config

    def parts(self, task: DistillTask) -> list[Part]:
        return [Part(f"class-{k}", task.work_dir / f"{k}.safetensors") for k in range(3)]

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        found = task.class_indices()[int(part.name[-1])]
        reporter.metrics(0, size=len(found))
        write_safetensors(part.output, {"images": task.pixels(found[: task.ipc])})

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        images = torch.cat([read_safetensors(p.output)[0]["images"] for p in self.parts(task)])
        return DistilledSet(images=images, labels=torch.arange(3).repeat_interleave(2))


class Slow(Descent):
    """Its defaults would take for ever."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        steps: int = 10**9
        rate: float = 0.25

    @classmethod
    def quick_config(cls) -> Slow.Config:
        return cls.Config(steps=2)


@pytest.mark.parametrize("good", [Descent, Real, Everything, Soft, Staged, Slow])
def test_a_good_distiller_passes_every_check(good: type[Distiller]) -> None:
    assert _failed(check_distiller(_entry(good, "distillers"))) == {}


def test_findings_say_what_was_seen() -> None:
    found = {f.check: f.detail for f in check_distiller(_entry(Descent, "distillers"))}
    assert found["resuming"] == "interrupted at report 1, 4, 8 of 8, it ends the same"
    assert found["seed"] == "another seed gives another set"
    real = {f.check: f.detail for f in check_distiller(_entry(Real, "distillers"))}
    assert real["seed"] == "another seed gives the same set: the method is deterministic"
    assert "no step at which it could be interrupted" in real["resuming"]
    staged = {f.check: f.detail for f in check_distiller(_entry(Staged, "distillers"))}
    assert staged["parts"] == "3 independent parts"


class NotANumber(Descent):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        return DistilledSet(images=torch.where(images > 0.6, torch.nan, images), labels=labels)


class WrongShape(Descent):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        return DistilledSet(images=images.flatten(1), labels=labels)


class Attached(Descent):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        return DistilledSet(images=images.requires_grad_(), labels=labels)


class Unbalanced(Descent):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        return DistilledSet(images=images, labels=torch.tensor([0, 0, 0, 1, 2, 2]))


class TooMany(Soft):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        soft = torch.full((12, 3), 1 / 3)
        return DistilledSet(images=images.repeat(2, 1, 1, 1), labels=soft)


class Unsavable(Descent):
    def finish(self, images: Tensor, labels: Tensor, task: DistillTask) -> DistilledSet:
        return DistilledSet(images=images, labels=labels, provenance={"device": task.device})


class Changing(Descent):
    count = 0

    def noise(self, task: DistillTask, step: int, images: Tensor) -> Tensor:
        Changing.count += 1
        return torch.full_like(images, 1e-6 * Changing.count)


class Global(Descent):
    """Draws from torch's global generator, in an order that survives an interruption."""

    def noise(self, task: DistillTask, step: int, images: Tensor) -> Tensor:
        first = torch.randn(images.shape)
        return 0.01 * first if step == 0 else torch.zeros_like(images)


class GlobalNumpy(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        np.random.shuffle(np.arange(3))  # noqa: NPY002
        return super().distill(task, reporter)


class GlobalPython(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        random.random()
        return super().distill(task, reporter)


class GlobalRestored(Real):
    """Puts the global generator back, but lets it into the result."""

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        state = torch.random.get_rng_state()
        noise = torch.rand(1)
        torch.random.set_rng_state(state)
        plain = super().distill(task, reporter)
        return DistilledSet(images=plain.images + noise, labels=plain.labels)


class NoGradient(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        torch.set_grad_enabled(False)
        return super().distill(task, reporter)


class InPlace(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        made = super().distill(task, reporter)
        if task.images.dtype == torch.float32:
            task.images.mul_(0.5)
        task.labels[0] += 0
        return made


class ReadsBytesWrong(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        index = torch.cat([found[: task.ipc] for found in task.class_indices()])
        return DistilledSet(images=task.images[index].float(), labels=task.labels[index])


class Forgets(Descent):
    """Resumes at the right step with images that it did not keep."""

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        state = task.work_dir / "state.safetensors"
        if state.exists():
            metadata = read_safetensors(state)[1]
            images, _ = task.real_images(task.ipc or 1, task.seeds.generator("start"))
            write_safetensors(state, {"images": images}, metadata)
        return super().distill(task, reporter)


class Swallows(Descent):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        try:
            return super().distill(task, reporter)
        except KeyboardInterrupt:
            return super().distill(task, reporter)


class AcceptsAnything(Real):
    @dataclass(frozen=True)
    class Config:
        network: Any = None


class CrashesOnEdges(Real):
    @dataclass(frozen=True)
    class Config:
        steps: int = 4

        def __post_init__(self) -> None:
            _ = 1 // self.steps


class PartsInOrder(Staged):
    """The second part needs the first, so the parts are not independent."""

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        first = self.parts(task)[0].output.exists()
        found = task.class_indices()[int(part.name[-1])]
        images = task.pixels(found[: task.ipc]) + (0.0 if first else 0.1)
        if part.name == "class-0":
            images = task.pixels(found[: task.ipc])
        write_safetensors(part.output, {"images": images})


class SharedOutputs(Staged):
    def parts(self, task: DistillTask) -> list[Part]:
        return [Part("class-0", p.output) for p in super().parts(task)]

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        for k in range(3):
            self.make_part(Part(f"class-{k}", task.work_dir / f"{k}.safetensors"), task, reporter)
        return super().distill(task, reporter)

    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        found = task.class_indices()[int(part.output.stem)]
        write_safetensors(part.output, {"images": task.pixels(found[: task.ipc])})


class Mover(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        os.chdir("/")
        return super().distill(task, reporter)


class Quitter(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        sys.exit(0)


def test_a_distiller_that_exits_passes_no_check_that_needs_its_set() -> None:
    failed = _failed(check_distiller(_entry(Quitter, "distillers")))
    assert {"set", "balance", "determinism", "settings"} <= set(failed)
    assert "SystemExit: it called exit(0)" in failed["set"]


@pytest.mark.parametrize(
    ("bad", "check", "words"),
    [
        (Mover, "settings", "the working directory"),
        (NotANumber, "set", "NaN or infinity"),
        (WrongShape, "set", "must be float32 of shape"),
        (Attached, "set", "still requires gradients"),
        (Unbalanced, "balance", "[3, 1, 2] images of the classes, asked for were 2 each"),
        (TooMany, "balance", "12 images, more than 2 per class"),
        (Unsavable, "saving", "not JSON serializable"),
        (GlobalNumpy, "generators", "numpy's global generator"),
        (GlobalPython, "generators", "Python's global generator"),
        (GlobalRestored, "generators", "the set depends on a global generator"),
        (Global, "generators", "torch's global generator"),
        (NoGradient, "settings", "torch's gradient mode"),
        (InPlace, "inputs", "changes the task's images"),
        (ReadsBytesWrong, "bytes", "use task.pixels()"),
        (Forgets, "resuming", "interrupted at report 1 of 8, it ends elsewhere"),
        (Swallows, "resuming", "went on after a KeyboardInterrupt"),
        (AcceptsAnything, "nonsense", "field 'network' accepts a value of any type"),
        (CrashesOnEdges, "nonsense", "steps = 0 ends in ZeroDivisionError"),
        (PartsInOrder, "parts", "in another order, the parts give another set"),
        (SharedOutputs, "parts", "share a name or an output"),
    ],
)
def test_a_bad_distiller_fails_exactly_the_check_it_should(
    bad: type[Distiller], check: str, words: str
) -> None:
    failed = _failed(check_distiller(_entry(bad, "distillers")))
    assert set(failed) == {check}
    assert words in failed[check]


def test_a_distiller_whose_every_run_differs_fails_whatever_compares_two_runs() -> None:
    failed = _failed(check_distiller(_entry(Changing, "distillers")))
    assert set(failed) == {"determinism", "generators", "bytes", "resuming"}
    assert "a second run gives another set" in failed["determinism"]


class Raises(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        raise RuntimeError("first line\nsecond line")


class ReturnsTuple(Real):
    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        return task.images, task.labels  # type: ignore[return-value]


class LosesPart(Staged):
    def make_part(self, part: Part, task: DistillTask, reporter: Reporter) -> None:
        return


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Raises, "RuntimeError: first line second line"),
        (ReturnsTuple, "distill returned tuple"),
        (LosesPart, "part 'class-0' did not write"),
    ],
)
def test_a_distiller_that_makes_nothing_still_has_its_class_and_configuration_checked(
    bad: type[Distiller], words: str
) -> None:
    findings = check_distiller(_entry(bad, "distillers"))
    assert {f.check for f in findings if f.passed} >= {"class", "config", "nonsense"}
    failed = _failed(findings)
    assert "set" in failed
    assert words in failed["set"]


class Incomplete(Distiller):
    Config = Real.Config


class Thawed(Real):
    @dataclass
    class Config:
        steps: int = 1


class Needy(Real):
    @dataclass(frozen=True)
    class Config:
        steps: int


class BadQuick(Real):
    quick_config: ClassVar[dict[str, int]] = {"steps": 1}


@pytest.mark.parametrize(
    ("bad", "check", "words"),
    [
        (Incomplete, "class", "does not implement distill"),
        (Path, "class", "is not a subclass of Distiller"),
        (Thawed, "config", "Config is not frozen"),
        (Needy, "config", "without a default: steps"),
        (BadQuick, "config", "quick_config gives dict, not a Config"),
    ],
)
def test_a_class_that_is_no_distiller_fails_from_the_start(
    bad: type[Any], check: str, words: str
) -> None:
    entry = _entry(bad, "distillers")
    if bad is Path:
        entry = Entry("distillers", "mine", "pathlib:Path", "", "me")
    failed = _failed(check_distiller(entry))
    assert words in failed[check]
    assert "set" in failed


def test_a_target_that_cannot_be_imported_is_a_finding() -> None:
    failed = _failed(check_distiller(Entry("distillers", "gone", "no_such_module:A", "", "me")))
    assert "plugin 'me': cannot load method 'gone'" in failed["class"]


# --- attacks ---------------------------------------------------------------------------------


class Gradient(Attack):
    """A good attack: signed gradients from a random start."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        steps: int = 3

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ValueError(f"steps must be positive, not {self.steps}")

    def perturb(self, task: AttackTask) -> AttackResult:
        model, images, labels, threat = task.model, task.images, task.labels, task.threat
        x = threat.project(images + threat.eps * self.start(images, task.generator), images)
        for _ in range(self.config.steps):
            x = x.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = threat.project(x.detach() + threat.eps * gradient.sign(), images)
        return AttackResult(images=self.finish(x.detach(), images, threat))

    def start(self, images: Tensor, generator: ExampleGenerator) -> Tensor:
        return generator.uniform(images.shape[1:], -0.1, 0.1)

    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return x


class LinfOnly(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        if task.threat.norm != "Linf":
            raise UsageError("linf-only knows the norm Linf and no other")
        return super().perturb(task)


class Together(Gradient):
    routed = True


@pytest.mark.parametrize("good", [Gradient, LinfOnly, Together])
def test_a_good_attack_passes_every_check(good: type[Attack]) -> None:
    findings = check_attack(_entry(good, "attacks"))
    assert _failed(findings) == {}
    norms = next(f.detail for f in findings if f.check == "norms")
    assert ("L2 works" in norms) == (good is not LinfOnly)
    strength = next(f.detail for f in findings if f.check == "strength")
    assert "Linf at eps 1: accuracy 0.00" in strength


class Leaves(Gradient):
    """Too far by a thousandth."""

    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return (images + 1.01 * (x - images)).clamp(0, 1)


class Unclamped(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        over = torch.where((x == 1) & (images > 0.95), 1.0005, x)
        return over if threat.eps and threat.norm == "Linf" else x


class OneNaN(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        hole = (images == images.flatten(1).amax(1).view(-1, 1, 1, 1)) & (threat.eps > 0)
        return torch.where(hole, torch.nan, x)


class Double(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return x.double()


class KeepsGraph(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return x.requires_grad_()


class MovesAtZero(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return (x - 1e-7).clamp(0, 1)


class Trains(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        if isinstance(task.model, torch.nn.Module):
            task.model.train()
        result = super().perturb(task)
        if isinstance(task.model, torch.nn.Module):
            task.model.eval()
        return result


class LeavesTrainMode(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        result = super().perturb(task)
        if isinstance(task.model, torch.nn.Module):
            task.model.train()
        return result


class LeavesGradients(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        result = super().perturb(task)
        if isinstance(task.model, torch.nn.Module):
            task.model.requires_grad_(True)
        return result


class ChangesLabels(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        result = super().perturb(task)
        task.labels.zero_()
        return result


class LeavesImagesAttached(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        result = super().perturb(task)
        task.images.requires_grad_()
        return result


class DependsOnBatch(Gradient):
    """One stream for the whole batch."""

    def start(self, images: Tensor, generator: ExampleGenerator) -> Tensor:
        local = torch.Generator().manual_seed(0)
        return torch.rand(images.shape, generator=local) * 0.2 - 0.1


class Meanders(Gradient):
    count = 0

    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        Meanders.count += 1
        return threat.project(x - 1e-6 * Meanders.count, images)


class GlobalNoise(Gradient):
    def start(self, images: Tensor, generator: ExampleGenerator) -> Tensor:
        return torch.rand(1) * 0.2 - 0.1 + torch.zeros_like(images)


class SetsDtype(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return x


class Weak(Gradient):
    """Descends the loss instead of climbing it."""

    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return threat.project(images - 0.01 * (x - images), images)


class Untold(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        if task.threat.norm != "Linf":
            raise KeyError(task.threat.norm)
        return super().perturb(task)


class ForgetsRows(Gradient):
    """Says that it attacks students together, and asks the model for a part of the rows."""

    routed = True

    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return x

    def perturb(self, task: AttackTask) -> AttackResult:
        parent = super().perturb
        pieces = torch.arange(len(task.images)).split(4)
        parts = [dataclasses.replace(task.select(i), model=task.model) for i in pieces]
        return AttackResult(images=torch.cat([parent(part).images for part in parts]))


class MixesRows(Gradient):
    """Puts the rows in another order and forgets to tell the model."""

    routed = True

    def perturb(self, task: AttackTask) -> AttackResult:
        back = torch.arange(len(task.images)).flip(0)
        found = super().perturb(dataclasses.replace(task.select(back), model=task.model))
        return AttackResult(images=found.images[back])


class LeavesHook(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        if isinstance(task.model, nn.Module):
            task.model.register_forward_hook(lambda module, inputs, output: output)
        return super().perturb(task)


class PatchesClass(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        plain = nn.Module.__call__

        def patched(self: nn.Module, x: Tensor) -> Any:
            return plain(self, x)

        nn.Module.__call__ = patched
        return super().perturb(task)


class AnyStep(Gradient):
    @dataclass(frozen=True)
    class Config:
        steps: object = 3


class OrderedByText(Gradient):
    stronger_than = "pgd"


class OrderedBeforeItself(Gradient):
    weaker_than = ("mine",)


class OrderedTwice(Gradient):
    stronger_than = ("noise", "pgd")
    weaker_than = ("pgd",)


@pytest.mark.parametrize(
    ("bad", "check", "words"),
    [
        (Leaves, "ball", "0.101 away, eps is 0.1"),
        (Unclamped, "box", "to 1.0005"),
        (OneNaN, "output", "NaN or infinity"),
        (Double, "output", "torch.float64"),
        (KeepsGraph, "output", "still requires gradients"),
        (MovesAtZero, "eps 0", "the images are changed at eps 0"),
        (Trains, "model", "the model's 1.running_mean is changed"),
        (LeavesTrainMode, "model", "left in train mode"),
        (LeavesGradients, "model", "gradients are left on the model's 0.weight"),
        (ChangesLabels, "inputs", "changes the labels"),
        (LeavesImagesAttached, "inputs", "images' gradients"),
        (DependsOnBatch, "batches", "in batches of 1, 4 and 3"),
        (ForgetsRows, "together", "take `rows(model, keep)` for the rows that are kept"),
        (MixesRows, "together", "come out otherwise with two students together"),
        (GlobalNoise, "generators", "torch's global generator"),
        (LeavesHook, "model", "a hook or an attribute is left on the model"),
        (PatchesClass, "settings", "Module.__call__"),
        (SetsDtype, "settings", "torch's default dtype"),
        (Weak, "strength", "keeps an accuracy of"),
        (Untold, "norms", "L2 ends in KeyError"),
        (AnyStep, "nonsense", "field 'steps' accepts a value of any type"),
        (OrderedByText, "order", "must be a tuple of registered names"),
        (OrderedBeforeItself, "order", "names the attack itself"),
        (OrderedTwice, "order", "declared stronger and weaker than pgd"),
    ],
)
def test_a_bad_attack_fails_exactly_the_check_it_should(
    bad: type[Attack], check: str, words: str
) -> None:
    failed = _failed(check_attack(_entry(bad, "attacks")))
    assert set(failed) == {check}
    assert words in failed[check]


def test_an_attack_whose_every_run_differs_fails_whatever_compares_two_runs() -> None:
    failed = _failed(check_attack(_entry(Meanders, "attacks")))
    assert set(failed) >= {"determinism", "generators"}


class NoNorm(Gradient):
    def perturb(self, task: AttackTask) -> AttackResult:
        raise UsageError("not today")


class NotATensor(Gradient):
    def finish(self, x: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        return x.numpy()


@pytest.mark.parametrize(
    ("bad", "words"), [(NoNorm, "UsageError: not today"), (NotATensor, "perturb returned ndarray")]
)
def test_an_attack_that_makes_nothing_still_has_its_class_and_configuration_checked(
    bad: type[Attack], words: str
) -> None:
    findings = check_attack(_entry(bad, "attacks"))
    passed = {f.check for f in findings if f.passed}
    assert passed == {"class", "order", "config", "nonsense", "import"}
    failed = _failed(findings)
    assert words in failed["norms"]
    assert words in failed["ball"]


# --- how checks are run ----------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[[], str]:
    def check() -> str:
        raise error

    return check


def test_one_check_that_fails_or_raises_does_not_stop_the_rest() -> None:
    checks = {
        "fails": _raise(FailedCheckError("a\nb")),
        "raises": _raise(KeyError("c")),
        "interrupts": _raise(Interruption("d")),
        "passes": lambda: "fine",
    }
    assert run_checks(checks) == [
        Finding("fails", False, "a b"),
        Finding("raises", False, "KeyError: 'c'"),
        Finding("interrupts", False, "Interruption: d"),
        Finding("passes", True, "fine"),
    ]


def test_the_users_own_ctrl_c_is_not_a_finding() -> None:
    def pressed() -> str:
        press_ctrl_c()
        return "unreachable"

    with pytest.raises(KeyboardInterrupt):
        run_checks({"any": pressed}, "mine")


def test_an_exit_or_an_interrupt_that_nobody_asked_for_is_a_finding() -> None:
    checks = {
        "exits": _raise(SystemExit(0)),
        "interrupts": _raise(KeyboardInterrupt()),
        "closes": _raise(GeneratorExit()),
        "passes": lambda: "fine",
    }
    findings = run_checks(checks, "mine")
    assert [finding.passed for finding in findings] == [False, False, False, True]
    assert "SystemExit: it called exit(0)" in findings[0].detail
    assert "nobody pressed Ctrl-C" in findings[1].detail


def test_the_checks_leave_generators_and_settings_as_they_were() -> None:
    before, settings = generator_states(), SavedSettings(GROUPS)
    check_distiller(_entry(Global, "distillers"))
    check_distiller(_entry(NoGradient, "distillers"))
    check_attack(_entry(GlobalNoise, "attacks"))
    check_attack(_entry(SetsDtype, "attacks"))
    assert generator_states() == before
    assert settings.restore() == []


def test_the_checks_leave_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tempfile"], "tempdir", str(tmp_path))
    check_distiller(_entry(Staged, "distillers"))
    assert list(tmp_path.iterdir()) == []


# --- what this distribution ships ------------------------------------------------------------

SHIPPED = {
    (kind, name): entry
    for kind, entries in collect(get_plugin_manager()).entries.items()
    if kind in ("distillers", "attacks")
    for name, entry in entries.items()
}


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_every_shipped_method_and_attack_passes_every_check(kind: str, name: str) -> None:
    check = check_distiller if kind == "distillers" else check_attack
    assert _failed(check(SHIPPED[kind, name])) == {}

"""Methods that behave well or badly, registered by a plugin of the tests called "crooks"."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Part, StagedDistiller
from robustdd_bench.files import write_text
from robustdd_bench.hookspecs import hookimpl

NAMES = {
    "spy": "Spy",
    "raising": "Raising",
    "unmakeable": "Unmakeable",
    "half": "Half",
    "not-a-set": "NotASet",
    "nan": "NotFinite",
    "divergent": "Divergent",
    "scribbler": "Scribbler",
    "strange-recipe": "StrangeRecipe",
    "strange-provenance": "StrangeProvenance",
    "memory": "OutOfMemory",
    "gambler": "Gambler",
}


class Crooks:
    @hookimpl
    def robustdd_register_distillers(self, register):
        for name, target in NAMES.items():
            register(name, f"small_methods:{target}", "of the tests")


class Spy(Distiller):
    """Random images; keeps every task it was given, and counts its calls."""

    seen: ClassVar[list[DistillTask]] = []

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        fraction: float = 0.5

    def distill(self, task, reporter):
        self.seen.append(task)
        images, labels = task.real_images(task.ipc, task.seeds.generator("spy"))
        return DistilledSet(images=images, labels=labels)


class Bad(Spy):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        pass


class Raising(Bad):
    def distill(self, task, reporter):
        raise ZeroDivisionError("two lines\nof reasons")


class Unmakeable(Bad):
    def __init__(self, config):
        raise ZeroDivisionError("no way")


class Half(StagedDistiller):
    """The first of two parts is fine, the second raises."""

    Config = Bad.Config

    def parts(self, task):
        return [Part(f"half-{k}", task.work_dir / f"half-{k}.txt") for k in range(2)]

    def make_part(self, part, task, reporter):
        if part.name == "half-1":
            raise ZeroDivisionError("the second half")
        write_text(part.output, "done\n")

    def distill(self, task, reporter):
        raise AssertionError("never reached")


class NotASet(Bad):
    def distill(self, task, reporter):
        return {"images": task.images}


class NotFinite(Bad):
    def distill(self, task, reporter):
        found = Spy.distill(self, task, reporter)
        return replace(found, images=found.images / 0.0)


class Divergent(Bad):
    def distill(self, task, reporter):
        return replace(Spy.distill(self, task, reporter), learning_rate=1e30)


class Scribbler(Bad):
    def distill(self, task, reporter):
        found = Spy.distill(self, task, reporter)
        task.images[:5].clamp_(max=0.5)
        return found


class StrangeRecipe(Bad):
    def distill(self, task, reporter):
        return replace(Spy.distill(self, task, reporter), augmentation="no_such_family")


class StrangeProvenance(Bad):
    def distill(self, task, reporter):
        return replace(Spy.distill(self, task, reporter), provenance={"loss": float("nan")})


class OutOfMemory(Bad):
    def distill(self, task, reporter):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")


class Gambler(Bad):
    """Draws from torch's global generator."""

    def distill(self, task, reporter):
        found = Spy.distill(self, task, reporter)
        return replace(found, images=torch.rand(found.images.shape))

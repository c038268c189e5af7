"""The checks of a distiller."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from robustdd_bench.conformance import surroundings
from robustdd_bench.conformance.configurations import config_of, load_class, refuses_nonsense
from robustdd_bench.conformance.findings import (
    FailedCheckError,
    Finding,
    Interruption,
    one_line,
    run_checks,
)
from robustdd_bench.conformance.tasks import CLASSES, IPC, SHAPE_CHW, CountingReporter, tiny_task
from robustdd_bench.distillers import DistilledSet, Distiller, StagedDistiller
from robustdd_bench.guard import guard
from robustdd_bench.plugins import Entry


def check_distiller(entry: Entry) -> list[Finding]:
    """Run every check against a registered distiller.

    The order is that of the list: first what the class is, then what it makes, then what it may
    not depend on or change.
    """
    prefix = "robustdd-check-"
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, surroundings.one_thread():
        bench = _Bench(entry, Path(folder))
        return run_checks(
            {
                "class": bench.check_class,
                "config": bench.check_config,
                "nonsense": bench.check_nonsense,
                "set": bench.check_set,
                "balance": bench.check_balance,
                "saving": bench.check_saving,
                "determinism": bench.check_determinism,
                "seed": bench.check_seed,
                "generators": bench.check_generators,
                "settings": bench.check_settings,
                "import": lambda: surroundings.check_import(entry.plugin),
                "inputs": bench.check_inputs,
                "bytes": bench.check_bytes,
                "resuming": bench.check_resuming,
                "parts": bench.check_parts,
            },
            entry.plugin,
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One distillation, and what it did to its surroundings."""

    distilled: DistilledSet
    calls: int
    generators: tuple[str, ...]
    settings: tuple[str, ...]
    inputs: tuple[str, ...]


class _Bench:
    """One entry on the bench; every method that begins with `check_` is a check."""

    def __init__(self, entry: Entry, folder: Path) -> None:
        self._entry = entry
        self._folder = folder

    @cached_property
    def _class(self) -> type[Any]:
        return load_class(self._entry, Distiller)

    @cached_property
    def _reference(self) -> _Outcome | Exception:
        """What the others are compared with, made once; or why there is none."""
        try:
            return self._distil("reference")
        except Exception as error:
            return error

    def _expected(self) -> _Outcome:
        if isinstance(self._reference, Exception):
            error = self._reference
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise FailedCheckError(f"not checked, the distillation itself failed: {reason}")
        return self._reference

    def _distil(
        self,
        folder: str,
        *,
        seed: int = 0,
        global_seed: int = 0,
        stop_at: int | None = None,
        as_bytes: bool = False,
        backwards: bool = False,
    ) -> _Outcome:
        """Distil as the harness does: a new object, the parts that are missing, the set."""
        distiller = self._class(config_of(self._class, self._entry))
        task = tiny_task(self._folder / folder, self._entry.name, seed=seed, as_bytes=as_bytes)
        given = {"images": task.images.clone(), "labels": task.labels.clone()}
        reporter = CountingReporter(stop_at)
        call = guard(self._entry.plugin, f"method {self._entry.name!r}", passing=(Interruption,))
        with surroundings.seeded_globals(global_seed), call:
            states = surroundings.generator_states()
            if isinstance(distiller, StagedDistiller):
                parts = list(distiller.parts(task))
                for part in reversed(parts) if backwards else parts:
                    if not part.output.exists():
                        distiller.make_part(part, task, reporter)
                    if not part.output.is_file():
                        raise FailedCheckError(f"part {part.name!r} did not write {part.output}")
            distilled = distiller.distill(task, reporter)
            moved = surroundings.differences(states, surroundings.generator_states())
        if reporter.stopped:
            raise FailedCheckError("it went on after a KeyboardInterrupt; let it pass")
        if not isinstance(distilled, DistilledSet):
            raise FailedCheckError(f"distill returned {type(distilled).__name__}")
        now = {"images": task.images, "labels": task.labels}
        touched = tuple(name for name in given if not torch.equal(given[name], now[name]))
        return _Outcome(distilled, reporter.calls, moved, call.changes, touched)

    def _same(self, distilled: DistilledSet, complaint: str) -> None:
        expected = self._expected().distilled
        if distilled.sha256() == expected.sha256():
            return
        where = ""
        if distilled.images.shape == expected.images.shape:
            largest = float((distilled.images - expected.images).abs().max())
            where = f" (largest difference of a pixel {largest:.2g})"
        raise FailedCheckError(f"{complaint}{where}")

    def check_class(self) -> str:
        return f"{self._class.__name__} is a complete Distiller"

    def check_config(self) -> str:
        config = config_of(self._class, self._entry)
        self._class(config)
        quick = "quick_config" if hasattr(self._class, "quick_config") else "the defaults"
        return f"a frozen dataclass with defaults; checked with {quick}"

    def check_nonsense(self) -> str:
        return refuses_nonsense(self._class.Config, self._entry)

    def check_set(self) -> str:
        distilled = self._expected().distilled
        distilled.check(SHAPE_CHW, CLASSES, None)
        if distilled.images.requires_grad or distilled.labels.requires_grad:
            raise FailedCheckError("the set still requires gradients; detach it")
        return f"{len(distilled)} images of {SHAPE_CHW}, finite, with labels"

    def check_balance(self) -> str:
        distilled = self._expected().distilled
        if getattr(self._class, "reference", False):
            return "a reference, free to hold any number of images"
        if not distilled.soft_labels:
            counts = [int((distilled.labels == k).sum()) for k in range(CLASSES)]
            if counts != [IPC] * CLASSES:
                raise FailedCheckError(f"{counts} images of the classes, asked for were {IPC} each")
            return f"{IPC} images of each of {CLASSES} classes"
        if len(distilled) > IPC * CLASSES:
            raise FailedCheckError(f"{len(distilled)} images, more than {IPC} per class")
        empty = (distilled.labels.sum(0) <= 0).nonzero().flatten().tolist()
        if empty:
            raise FailedCheckError(f"no soft label gives class {empty[0]} any weight")
        return f"{len(distilled)} images, soft labels on every class"

    def check_saving(self) -> str:
        distilled = self._expected().distilled
        path = self._folder / "saved.safetensors"
        distilled.save(path)
        read = DistilledSet.load(path)
        if read.sha256() != distilled.sha256() or read.provenance != distilled.provenance:
            raise FailedCheckError("the saved set comes back changed; provenance must be JSON")
        return "the saved set comes back equal"

    def check_determinism(self) -> str:
        self._expected()
        self._same(self._distil("again").distilled, "a second run gives another set")
        return "a second run gives the same set, bit for bit"

    def check_seed(self) -> str:
        expected = self._expected().distilled
        if self._distil("seeded", seed=1).distilled.sha256() == expected.sha256():
            return "another seed gives the same set: the method is deterministic"
        return "another seed gives another set"

    def check_generators(self) -> str:
        used = self._expected().generators
        if used:
            raise FailedCheckError(f"it moves {' and '.join(used)} global generator")
        other = self._distil("global", global_seed=1).distilled
        self._same(other, "the set depends on a global generator")
        return "no global generator is used or moved"

    def check_settings(self) -> str:
        changed = self._expected().settings
        if changed:
            raise FailedCheckError(f"it leaves {', '.join(changed)} changed")
        return "torch, numpy, Python and the process are as they were"

    def check_inputs(self) -> str:
        touched = self._expected().inputs
        if touched:
            raise FailedCheckError(f"it changes the task's {' and '.join(touched)}")
        return "the task's images and labels are as they were"

    def check_bytes(self) -> str:
        self._expected()
        other = self._distil("bytes", as_bytes=True).distilled
        self._same(other, "images as uint8 give another set; use task.pixels()")
        return "images as uint8 give the same set"

    def check_resuming(self) -> str:
        calls = self._expected().calls
        points = sorted({1, (calls + 1) // 2, calls} - {0}) if calls else []
        for point in points:
            folder = f"resumed-{point}"
            with contextlib.suppress(Interruption):
                self._distil(folder, stop_at=point)
            distilled = self._distil(folder).distilled
            self._same(distilled, f"interrupted at report {point} of {calls}, it ends elsewhere")
            self._same(self._distil(folder).distilled, "called again when done, it ends elsewhere")
        if not points:
            self._same(self._distil("reference").distilled, "called again, it ends elsewhere")
            return "it reports no step at which it could be interrupted; called again, it is equal"
        return f"interrupted at report {', '.join(map(str, points))} of {calls}, it ends the same"

    def check_parts(self) -> str:
        if not issubclass(self._class, StagedDistiller):
            return "it has no parts"
        self._expected()
        task = tiny_task(self._folder / "parts", self._entry.name)
        distiller = self._class(config_of(self._class, self._entry))
        parts = list(distiller.parts(task))
        names, outputs = [part.name for part in parts], [part.output for part in parts]
        if len(set(names)) < len(names) or len(set(outputs)) < len(outputs):
            raise FailedCheckError("two parts share a name or an output")
        if list(distiller.parts(task)) != parts:
            raise FailedCheckError("asked twice, it names other parts")
        outside = [
            path
            for path in outputs
            if not any(path.is_relative_to(home) for home in (task.work_dir, task.store_dir))
        ]
        if outside:
            raise FailedCheckError(f"{outside[0]} is outside work_dir and store_dir")
        other = self._distil("backwards", backwards=True).distilled
        self._same(other, "made in another order, the parts give another set")
        return f"{len(parts)} independent parts"

"""What the GPU benchmarks share: a time budget, timing, ceilings, and a file that is never lost.

    python benchmarks/gpu/<script>.py --out DIR [--data-root DIR] [--budget 540] [--tiny]

A script measures its variants one after the other and writes DIR/<script>.json anew after each, so
that what was measured outlives a machine that is taken away. It begins no measurement for which, by
the ones before it, the budget is too short; what was left out is listed. `--tiny` rehearses every
variant at a size for a CPU: its figures mean nothing.

Shares of the bound: operations are counted once per variant (by torch's formulas) and divided
by the rate of a large matrix product measured in the same run, in the arithmetic of the variant.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from robustdd_bench.toolkit.fast.precision import PRECISIONS, precision

ARITHMETIC = PRECISIONS[1:]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Measurement(_Strict):
    """One variant of one workload."""

    workload: str
    """The same for variants that do the same work."""
    variant: str
    wall_s: list[float]
    """Seconds of each repetition; empty where it failed."""
    median_s: float | None
    items: int
    """What one repetition works through."""
    unit: str
    items_per_s: float | None
    operations: float | None
    """Floating-point operations of one repetition, where they were counted."""
    share_of_bound: float | None
    """Operations per second over the measured ceiling of the variant's arithmetic."""
    arithmetic: str
    peak_bytes: int
    """Largest allocated memory of the device during the repetitions, 0 on the CPU."""
    values: dict[str, float] = Field(default_factory=dict)
    """What it computed, such as accuracies, losses or errors against float64."""
    error: str | None = None
    """Why there is no measurement."""


class Report(_Strict):
    """What every file of results says of its call."""

    schema_version: int = 1
    script: str
    command: str
    tiny: bool
    """A rehearsal: its figures mean nothing."""
    device: str
    machine: str
    commit: str
    versions: dict[str, str]


Found = dict[str, float] | None
"""What a measured call gives: values to keep beside its time, if any."""


class Result(Report):
    """A file of measurements."""

    ceilings: dict[str, float]
    """Operations per second of a matrix product by arithmetic; bytes per second of a copy."""
    measurements: list[Measurement]
    left_out: list[str]
    """Variants for which there was no time."""
    ratios: dict[str, dict[str, float]]
    """Workload -> variant -> seconds an item of the first variant over the variant's: above 1,
    faster."""

    @model_validator(mode="after")
    def _consistent(self) -> Result:
        if self.ratios != ratios(self.measurements):
            raise ValueError("the ratios do not follow from the medians")
        for one in self.measurements:
            median = statistics.median(one.wall_s) if one.wall_s else None
            if one.median_s != median or (median is None) != (one.error is not None):
                raise ValueError(f"{one.workload}, {one.variant}: median_s is not the median")
        return self


def ratios(measurements: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """How many times as fast as the first variant of its workload each variant is."""
    first: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    for one in measurements:
        if one.median_s is None:
            continue
        each = one.median_s / one.items
        base = first.setdefault(one.workload, each)
        found.setdefault(one.workload, {})[one.variant] = base / each
    return found


class Bench:
    """One run of one script.

    Args:
        script: its name.
        options: the parsed command line.
    """

    def __init__(self, script: str, options: argparse.Namespace) -> None:
        self.script, self.options = script, options
        self.tiny: bool = options.tiny
        self.device = torch.device(options.device)
        self._end = time.monotonic() + options.budget
        self._measurements: list[Measurement] = []
        self._left_out: list[str] = []
        self._longest: dict[str, float] = {}
        self.ceilings = self._ceilings()

    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        left: float = self._end - time.monotonic()
        return left

    def measure(
        self,
        workload: str,
        variant: str,
        work: Callable[[], Found],
        *,
        items: int,
        unit: str,
        repeats: int = 5,
        warm_up: int = 1,
        arithmetic: str = "tf32",
        operations: float | None = None,
        needs_s: float = 0.0,
    ) -> None:
        """Measure one variant and write the file.

        Args:
            workload: what is done; the first variant of a workload is its naive form.
            variant: how.
            work: does it once; may return figures to keep.
            items: what one call works through.
            unit: of the items.
            repeats: calls that are timed.
            warm_up: calls before them.
            arithmetic: one of `ARITHMETIC`, for the bound.
            operations: floating-point operations of a call.
            needs_s: seconds it is known to take at least.
        """
        if not self.options.variants.search(f"{workload}: {variant}"):
            return
        needs = max(needs_s, self._longest.get(workload, 0.0))
        if self.left_s() < 1.2 * needs:
            self._left_out.append(f"{workload}: {variant}")
            self._write()
            return
        began = time.monotonic()
        times: list[float] = []
        values: dict[str, float] = {}
        error, peak = None, 0
        try:
            for _ in range(0 if self.tiny else warm_up):
                work()
            self._reset_peak()
            for _ in range(1 if self.tiny else repeats):
                seconds, found = self._timed(work)
                times.append(seconds)
                values = found or values
                if self.left_s() < seconds:
                    break
            peak = self._peak()
        except (RuntimeError, NotImplementedError, AssertionError) as failure:
            # One form that torch refuses (its compiler by assertions too) must not cost the call
            # the others; it is a measurement that failed, and `summary` names it again.
            times, error = [], " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
        self._longest[workload] = time.monotonic() - began
        median = statistics.median(times) if times else None
        share = None
        ceiling = self.ceilings.get(arithmetic)
        if operations and median and ceiling:
            share = operations / median / ceiling
        one = Measurement(
            workload=workload,
            variant=variant,
            wall_s=times,
            median_s=median,
            items=items,
            unit=unit,
            items_per_s=items / median if median else None,
            operations=operations,
            share_of_bound=share,
            arithmetic=arithmetic,
            peak_bytes=peak,
            values=values,
            error=error,
        )
        self._measurements.append(one)
        self._write()
        rate = "failed" if median is None else f"{items / median:,.0f} {unit}/s"
        text = f"{workload:34} {variant:28} {rate:>24} {peak / 2**20:9,.0f} MiB {error or ''}"
        print(text, file=sys.stderr, flush=True)

    def _timed(self, work: Callable[[], Found]) -> tuple[float, Found]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            found = work()
            return time.perf_counter() - start, found
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        found = work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000, found

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def _ceilings(self) -> dict[str, float]:
        """The rates of a large matrix product and of a large copy, measured on random data."""
        size, copied = (64, 2**16) if self.tiny else (8192, 2**31)
        found = {}
        for name in ARITHMETIC:
            dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
            a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
            with precision("float32" if name == "float32" else "tf32", self.device):
                seconds = self._best(functools.partial(torch.matmul, a, b))
            found[name] = 2 * size**3 / seconds
        x = torch.randn(copied // 4, device=self.device)
        y = torch.empty_like(x)
        found["copy"] = 2 * copied / self._best(lambda: y.copy_(x))
        return found

    def _best(self, work: Callable[[], object]) -> float:
        return min(self._timed(lambda: (work(), None)[1])[0] for _ in range(3 if self.tiny else 10))

    def _write(self) -> None:
        result = Result(
            **circumstances(self.script, self.options, self._arguments()),
            ceilings=self.ceilings,
            measurements=self._measurements,
            left_out=self._left_out,
            ratios=ratios(self._measurements),
        )
        write_report(self.options.out / f"{self.script}.json", result)

    def _arguments(self) -> list[str]:
        options = ["--budget", f"{self.options.budget:g}"]
        if self.options.train_files != 5:
            options += ["--train-files", str(self.options.train_files)]
        if self.options.variants.pattern:
            options += ["--variants", self.options.variants.pattern]
        return options + (["--tiny"] if self.tiny else [])

    def summary(self) -> None:
        """Print the ratios, the last thing a call shows."""
        self._write()
        failed = {f"{one.workload}: {one.variant}": one.error for one in self._measurements}
        shown = {
            "ratios": ratios(self._measurements),
            "left_out": self._left_out,
            "failed": {name: error for name, error in failed.items() if error},
        }
        print(json.dumps(shown, indent=1))


def circumstances(script: str, options: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """The fields of a `Report`: where, of which code, and by which call.

    Args:
        script: its name.
        options: the parsed command line.
        words: the options that decide what was done.
    """
    from robustdd_bench.registry.commit import source_commit

    commit = source_commit()
    cuda = torch.device(options.device).type == "cuda"
    return {
        "script": script,
        "command": shlex.join(["python", f"benchmarks/gpu/{script}.py", *words]),
        "tiny": options.tiny,
        "device": options.device,
        "machine": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "commit": "" if commit is None else commit["sha"] + ("-dirty" if commit["dirty"] else ""),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda or ""}
        | {name: importlib.metadata.version(name) for name in ("torch", "robustdd-bench")},
    }


def write_report(path: Path, report: Report) -> None:
    """Write a report, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def relative(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all scripts share."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder of the results")
    made.add_argument("--data-root", type=Path, default=Path("data"), help="folder of CIFAR-10")
    made.add_argument("--budget", type=float, default=540, help="seconds to stay within")
    made.add_argument("--tiny", action="store_true", help="rehearse at a size for a CPU")
    made.add_argument(
        "--train-files", type=int, default=5, choices=range(1, 6), metavar="N",
        help="files of CIFAR-10's training images to use, where not all of them are at hand",
    )  # fmt: skip
    made.add_argument(
        "--variants", type=re.compile, default=re.compile(""), metavar="REGEX",
        help="measure only those whose 'workload: variant' it is found in",
    )  # fmt: skip
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def parse(
    made: str | argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The command line of a script: by its own parser, or by its description alone."""
    made = parser(made) if isinstance(made, str) else made
    options = made.parse_args(arguments)
    if options.device == "cpu" and not options.tiny:
        made.error("without a GPU only --tiny makes sense")
    if options.device == "cpu":
        torch.set_num_threads(1)
    return options

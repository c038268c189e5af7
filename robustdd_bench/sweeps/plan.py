"""The runs of a sweep: every plan is made, and every mistake told, before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from robustdd_bench.config import assignment
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.filenames import PLAN_FILE, is_toml
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import Track, record_of
from robustdd_bench.records.means import (
    check_threads,
    resolve_compile,
    resolve_device,
    resolve_threads,
)
from robustdd_bench.records.patterns import begins, fits
from robustdd_bench.records.plan import (
    Plan,
    make_plan,
    method_entry,
    plan_attacks,
    resolve_track,
)
from robustdd_bench.records.presets import DEFAULT_PRESET, preset_values
from robustdd_bench.runs.cleaning import is_locked, recorded_status
from robustdd_bench.sweeps.file import (
    MAX_RUNS,
    RunsSpec,
    SweepFileError,
    SweepSpec,
    place,
    read_sweep_file,
)

Found = Literal["new", "started", "running", "failed", "done"]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep."""

    plan: Plan
    run_id: str
    settings: str = ""
    """The preset and the settings that tell it from the method's other runs in the sweep."""

    @property
    def group(self) -> tuple[str, str, str]:
        """Track, method and settings: what its repetitions with other seeds share."""
        return self.plan.track.id, self.plan.method, self.settings

    def __str__(self) -> str:
        plan = self.plan
        settings = f" ({self.settings})" if self.settings else ""
        return f"{plan.method} on {plan.track.name}, seed {plan.seed}{settings}"

    def found(self, out: Path) -> Found:
        """What there is of it under an output folder; a finished run is not examined."""
        folder = self.plan.folder(out)
        if is_locked(folder, unsure=False):
            return "running"
        status = recorded_status(folder)
        if status in ("complete", "failed"):
            return "done" if status == "complete" else "failed"
        return "started" if (folder / PLAN_FILE).is_file() else "new"


@dataclass(frozen=True, slots=True)
class Sweep:
    """A planned sweep: its runs in the order of the file, each once."""

    name: str
    split: str
    """"test" or "validation"."""
    runs: tuple[SweepRun, ...]


def plan_sweep(
    path: Path,
    registry: Registry,
    *,
    device: str = "auto",
    threads: int = 1,
    compile: str = "off",
    elsewhere: bool = False,
    only: Sequence[str] = (),
    loading: Callable[[], object] = lambda: None,
) -> Sweep:
    """Plan every run of a sweep.

    Args:
        path: its file; see `robustdd_bench.sweeps.file`.
        registry: what is installed.
        device: see `make_plan`.
        threads: see `make_plan`.
        compile: see `make_plan`.
        elsewhere: see `make_plan`.
        only: patterns METHOD or METHOD/TRACK with `*` for any text, or run ids (six digits of one
            at least); empty: all runs. The whole file has to be right all the same.
        loading: called before torch is imported, if the file can be read and names nothing unknown.

    Raises:
        SweepFileError: entries are wrong; all of them are named.
        UsageError: the file cannot be read, device or threads cannot be had, or a pattern fits no
            run.
    """
    spec = read_sweep_file(path)
    check_threads(threads)
    if _names_are_known(spec, registry, path.parent):
        loading()
    device = resolve_device(device, elsewhere=elsewhere)
    threads = resolve_threads(threads)
    compiled = "on" if resolve_compile(compile, device, elsewhere=elsewhere) else "off"
    planner = _Planner(registry, path.parent, device, threads, spec.validation, compiled, elsewhere)
    count = _count(spec)
    if count > MAX_RUNS:
        raise UsageError(f"{path}: {count} runs are more than a sweep may have ({MAX_RUNS})")
    found: dict[str, Plan] = {}
    for plan in planner.plans(spec):
        found.setdefault(plan.run_id(), plan)
    if planner.problems:
        raise SweepFileError(path, [*planner.problems.values()])
    split = "validation" if spec.validation else "test"
    return Sweep(spec.name or path.stem, split, _chosen(_labelled(found), only))


def _source(name: str, folder: Path) -> str:
    """The name of a registered track; the path of one that is a file beside the sweep's."""
    return str(folder / name) if is_toml(name) or record_of(name) else name


def _names_are_known(spec: SweepSpec, registry: Registry, folder: Path) -> bool:
    """Whether every method and track is found, as far as that can be told without torch."""
    tracks = [*spec.tracks, *(name for runs in spec.runs for name in runs.tracks or ())]
    try:
        for method in [*(spec.methods or ()), *(runs.method for runs in spec.runs)]:
            method_entry(registry, method)
        for name in dict.fromkeys(tracks):
            resolve_track(_source(name, folder), registry)
    except RobustDDError:  # told together with all else that is wrong
        return False
    return True


def _labelled(plans: Mapping[str, Plan]) -> list[SweepRun]:
    """The runs of plans by id: what all runs of a method have in common is not in `settings`."""
    fields = {
        run_id: {f"preset {plan.preset}": ""}
        | {key: assignment(key, value) for key, value in sorted(plan.overrides.items())}
        for run_id, plan in plans.items()
    }
    common: dict[str, set[tuple[str, str]]] = {}
    for run_id, plan in plans.items():
        common.setdefault(plan.method, set(fields[run_id].items())).intersection_update(
            fields[run_id].items()
        )
    return [
        SweepRun(
            plan,
            run_id,
            ", ".join(
                text or key
                for key, text in fields[run_id].items()
                if (key, text) not in common[plan.method]
            ),
        )
        for run_id, plan in plans.items()
    ]


def _chosen(runs: Sequence[SweepRun], only: Sequence[str]) -> tuple[SweepRun, ...]:
    """The runs that fit one of the patterns.

    Raises:
        UsageError: a pattern fits none.
    """
    if not only:
        return tuple(runs)
    chosen: set[str] = set()
    for pattern in only:
        fitting = {
            run.run_id for run in runs if fits(pattern, run.plan.method, run.plan.track.name)
        }
        if not fitting:
            fitting = {run.run_id for run in runs if begins(pattern, run.run_id)}
        if not fitting:
            raise UsageError(f"--only {pattern!r} fits no run of the sweep")
        chosen |= fitting
    return tuple(run for run in runs if run.run_id in chosen)


def _axes(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each setting; what is no list is an axis of one value."""
    return {key: value if isinstance(value, list) else [value] for key, value in settings.items()}


def _count(spec: SweepSpec) -> int:
    """How many runs a file describes, doubles included."""
    count = 0
    for method in spec.methods or ():
        axes = _axes(spec.settings.get(method, {})).values()
        presets = spec.presets.get(method, (DEFAULT_PRESET,))
        count += math.prod([*map(len, axes), len(presets), len(spec.tracks), len(spec.seeds)])
    for runs in spec.runs:
        count += len(runs.tracks or spec.tracks) * len(runs.seeds or spec.seeds)
    return count


class _Planner:
    """Makes plans, and collects what is wrong.

    Args:
        registry: what is installed.
        folder: where tracks are looked for that are files.
        device: "cpu" or "cuda".
        threads: CPU threads.
        validate: whether to judge on the validation split.
        compile: "on" or "off".
        elsewhere: see `make_plan`.
    """

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        device: str,
        threads: int,
        validate: bool,
        compile: str,
        elsewhere: bool,
    ) -> None:
        self._registry = registry
        self._folder = folder
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "validate": validate,
            "compile": compile,
            "elsewhere": elsewhere,
        }
        self.problems: dict[str, str] = {}
        """By what is wrong, so that it is told once, where it is first met."""

    def plans(self, spec: SweepSpec) -> Iterator[Plan]:
        """Every plan that can be made, in order, doubles included."""
        tracks = self._tracks(spec.tracks, ("tracks",))
        for index, method in enumerate(spec.methods or ()):
            if not self._known(method, "methods", index):
                continue
            axes = _axes(spec.settings.get(method, {}))
            known = method in spec.settings
            where = place("settings", method) if known else place("methods", index)
            for preset in spec.presets.get(method, (DEFAULT_PRESET,)):
                if not self._has_preset(method, preset, tracks):
                    continue
                for values in itertools.product(*axes.values()):
                    settings = dict(zip(axes, values, strict=True))
                    runs = RunsSpec(method=method, preset=preset, set=settings)
                    yield from self._seeds(runs, tracks, spec.seeds, where)
        for index, runs in enumerate(spec.runs):
            where = place("runs", index)
            own = (
                tracks
                if runs.tracks is None
                else self._tracks(runs.tracks, ("runs", index, "tracks"))
            )
            if self._known(runs.method, "runs", index, "method"):
                yield from self._seeds(runs, own, runs.seeds or spec.seeds, where)

    def _seeds(
        self, runs: RunsSpec, tracks: Mapping[str, Track], seeds: Sequence[int], where: str
    ) -> Iterator[Plan]:
        """Plans of one method with one configuration on each track with each seed."""
        for source in tracks:
            try:
                plan = make_plan(
                    self._registry,
                    method=runs.method,
                    track=source,
                    assignments=runs.set,
                    preset=runs.preset,
                    **self._options,
                )
            except RobustDDError as error:
                self._wrong(where, error)
                continue
            yield from (replace(plan, seed=seed) for seed in seeds)

    def _tracks(self, names: Sequence[str], keys: Sequence[str | int]) -> dict[str, Track]:
        """The tracks that can be used, by name or path."""
        found = {}
        for index, name in enumerate(names):
            source = _source(name, self._folder)
            try:
                track = resolve_track(source, self._registry)
                plan_attacks(track, self._registry)
            except RobustDDError as error:
                self._wrong(place(*keys, index), error)
            else:
                found[source] = track
        return found

    def _known(self, method: str, *keys: str | int) -> bool:
        """Whether a method is registered and loads."""
        try:
            method_entry(self._registry, method).load()
        except RobustDDError as error:
            self._wrong(place(*keys), error)
            return False
        return True

    def _has_preset(self, method: str, preset: str, tracks: Mapping[str, Track]) -> bool:
        """Whether a method has a preset for each of the tracks."""
        entry = method_entry(self._registry, method)
        try:
            for track in tracks.values():
                preset_values(entry.load(), preset, track, entry.plugin)
        except RobustDDError as error:
            self._wrong(place("presets", method), error)
            return False
        return True

    def _wrong(self, where: str, error: RobustDDError) -> None:
        self.problems.setdefault(str(error), f"{where}: {error}")

"""Taking over the distilled set of a run, to evaluate it again without making it again.

A new version of a track has another suite or other students, while the set would come out the
same: distillation depends on neither. `adopted.json` in the new run's folder then stands for its
experts and its distillation; the record names the run they are from and carries their costs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from robustdd_bench.config import (
    all_settings,
    assignment,
    build_config,
    config_class,
    recorded_config,
)
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.executors import Cell
from robustdd_bench.filenames import RECORD_FILE, REUSE_FILE, SET_FILE
from robustdd_bench.files import atomic_write, file_sha256, write_json
from robustdd_bench.identity import earlier_values, same_value
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import Track, load_track
from robustdd_bench.records.environment import process
from robustdd_bench.records.parts import Adopted, StageProcess, StageTime
from robustdd_bench.records.plan import (
    Plan,
    make_plan,
    method_entry,
)
from robustdd_bench.records.presets import preset_values
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.strict import StrictModel

MAKING = ("experts", "distill")
"""The stages that make a set."""


class ReusedSet(StrictModel):
    """What stands for the experts and the distillation of a run."""

    ADDED: ClassVar = {"processes": "0.2.0"}

    origin: Adopted
    set_sha256: str
    """Hash of the set's file."""
    stages: tuple[StageTime, ...]
    """What they cost there."""
    processes: tuple[StageProcess, ...] = ()
    """What did them there."""


def plan_again(
    registry: Registry,
    run: Path,
    *,
    track: str | None,
    compile: str | None = None,
    **options: Any,
) -> tuple[Plan, Record]:
    """The plan that evaluates the set of a finished run under a track, and the run's record.

    Args:
        registry: the installed plugins.
        run: the folder of the run, published or not.
        track: name or file of a track; None: the run's, in the version that is installed.
        compile: see `make_plan`; None: as the run did.
        **options: further arguments of `make_plan`.

    Raises:
        UsageError: there is no finished run, its set is missing or another one, or under that
            track the method would make another set.
    """
    record = read_record(run / RECORD_FILE)
    if record.status != "complete" or record.distilled is None:
        raise UsageError(f"{run} did not end; there is no set to evaluate")
    if record.method.plugin == "builtin":
        raise UsageError(f"{run} evaluated a given set; evaluate the set's file")
    _check_file(run, record)
    method, name = record.method, track or record.track.name
    resolved = load_track(name, registry)
    _check_track(record.track, resolved)
    plan = make_plan(
        registry,
        method=method.name,
        track=name,
        assignments=_assignments(registry, record, resolved),
        preset=method.preset,
        seed=record.seed,
        validate=record.split == "validation",
        compile=compile or ("auto" if record.plan().compile else "off"),
        **options,
    )
    wanted = _settings(registry, record)
    if dict(plan.config) != wanted:
        raise UsageError(
            f"{run} was made by another version of method {method.name!r}, in which "
            f"{', '.join(_different(plan.config, wanted))} meant something else; run the method "
            "again"
        )
    # The set is that of the record, so it comes from the version that made it.
    return replace(plan, version=method.version), record


def _settings(registry: Registry, record: Record) -> dict[str, Any]:
    """The settings of a record, without those that a later version would leave out of it."""
    method = record.method
    kind = config_class(method_entry(registry, method.name).load(), f"method {method.name!r}")
    later = earlier_values(kind)
    return {
        name: value
        for name, value in method.config.items()
        if name not in later or not same_value(value, later[name])
    }


def _different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))


def _check_file(run: Path, record: Record) -> None:
    assert record.distilled is not None
    if record.method.reference and not (run / SET_FILE).exists():
        raise UsageError(
            f"the set of {run} is the training split, which is not published; run it anew: "
            f"{record.command_to_repeat}"
        )
    if DistilledSet.load(run / SET_FILE).sha256() != record.distilled.sha256:
        raise UsageError(f"the distilled set in {run} is not that of its record")


def _check_track(old: Track, new: Track) -> None:
    """Raise UsageError unless a method sees the same task under both tracks."""

    def seen(track: Track) -> Mapping[str, Any]:
        return {
            "data": track.data,
            "network": track.network,
            "preprocessing": track.preprocessing,
            "threat.norm": track.threat.norm,
            "threat.headline": track.threat.headline,
            "students.augmentation": track.students.augmentation,
            "base, whose name is in the seeds": track.family,
            "seed_scheme": track.seed_scheme,
        }

    before, after = seen(old), seen(new)
    changed = [key for key, value in before.items() if after[key] != value]
    if changed:
        raise UsageError(
            f"under track {new.id} the method would make another set ({', '.join(changed)} "
            f"differ from {old.id}); run it again"
        )


def _assignments(registry: Registry, record: Record, track: Track) -> list[str]:
    """What has to be set beside the preset to get the record's configuration."""
    method = record.method
    entry = method_entry(registry, method.name)
    distiller = entry.load()
    owner = f"method {method.name!r}"
    kind = config_class(distiller, owner)
    named = preset_values(distiller, method.preset, track, entry.plugin)
    base = all_settings(build_config(kind, named, owner))
    wanted = all_settings(recorded_config(kind, method.config, owner))
    return [assignment(key, value) for key, value in wanted.items() if base[key] != value]


def reuse_set(folder: Path, run: Path, record: Record, cell: Cell) -> None:
    """Put the set of `run` into the folder of a new run, and sign its cell.

    Args:
        folder: the new run's folder.
        run: the folder the set is taken from.
        record: its record.
        cell: `reused_cell` of the new run.
    """
    if cell.done():
        return
    source = run / cell.output.name
    with source.open("rb") as file, atomic_write(cell.output) as copy:
        shutil.copyfileobj(file, copy)
    stages = tuple(s for s in record.costs.stages if s.stage in MAKING)
    processes = tuple(p for p in record.costs.processes if p.stage in MAKING)
    before = record.costs.adopted
    origin = before or Adopted(
        run_id=record.run_id,
        results_sha256=record.results_sha256,
        torch=record.torch,
        harness=record.harness,
        commit=record.costs.commit,
    )
    reused = ReusedSet(
        origin=origin,
        set_sha256=file_sha256(cell.output),
        stages=stages,
        processes=processes,
    )
    write_json(folder / REUSE_FILE, reused.model_dump(mode="json"))
    cell.sign(wall_s=0.0, peak_bytes=0, items=0, unit="steps", process=process("cpu"))


def reused_cell(folder: Path, output: Path, train_sha256: str, scope: str) -> Cell:
    """The cell that stands for experts and distillation.

    Args:
        folder: the run's folder.
        output: where the set is.
        train_sha256: hash of the training data.
        scope: whose cell it is, the run's.
    """
    return Cell(
        scope=scope,
        stage="distill",
        name="distill",
        output=output,
        inputs=(folder / REUSE_FILE,),
        data=(train_sha256,),
    )


def read_reused(folder: Path) -> ReusedSet | None:
    """What is known of the set that a run reuses; None where it reuses none."""
    try:
        return ReusedSet.model_validate_json((folder / REUSE_FILE).read_bytes(), strict=True)
    except (OSError, ValueError):
        return None

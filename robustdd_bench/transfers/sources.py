"""The runs of a transfer matrix: what is read of them, and whether they belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from robustdd_bench.attacks import Attack
from robustdd_bench.config import build_config, config_class
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.students import weights_sha256
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.guard import blame
from robustdd_bench.identity import earlier_values
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.means import resolve_device
from robustdd_bench.records.parts import DataInfo
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.folder import RunFolder
from robustdd_bench.runs.shared import SharedData


@dataclass(frozen=True)
class TransferRun:
    """A run that has ended and kept its students."""

    path: Path
    """Its folder, as it was named."""
    record: Record
    label: str
    """What tables call it: unlike those of the other runs."""
    context: RunContext = field(repr=False)

    @property
    def data(self) -> DataInfo:
        """The data it saw."""
        assert self.record.data is not None
        return self.record.data

    @cached_property
    def students(self) -> tuple[nn.Module, ...]:
        """Its students, in eval mode with frozen weights.

        Raises:
            UsageError: one is not the network that the record tells of.
        """
        with self.context.network_code():
            networks = tuple(self.context.student(one.index) for one in self.record.students)
        self.context.let_go()  # each run has a copy of the training images
        for network, one in zip(networks, self.record.students, strict=True):
            if weights_sha256(network) != one.sha256:
                raise UsageError(
                    f"student {one.index} of {self.path} is not the one that its record tells of; "
                    f"{_again(self.path, self.record)}"
                )
        return networks

    @property
    def weights(self) -> list[str]:
        """Hashes of the students' weights, by the record."""
        return [one.sha256 for one in self.record.students]


def load_runs(
    paths: Sequence[Path], registry: Registry, data_root: Path, device: str
) -> list[TransferRun]:
    """The runs in these folders, of which one can be held against another.

    Args:
        paths: folders of runs.
        registry: the installed plugins.
        data_root: where datasets are looked for.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: there is none, one is named twice, did not end, keeps no students or was judged
            on other images or in another norm than the first; or the data are missing or others.
    """
    if not paths:
        raise UsageError("a transfer matrix needs at least one run: the folder of one")
    resolved = [path.resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise UsageError(f"{paths[i]} is named twice")
    records = [_read(path) for path in paths]
    for path, record in zip(paths[1:], records[1:], strict=True):
        check_alike(path, record, paths[0], records[0])
    chosen, shared, runs = resolve_device(device), SharedData(), []
    for path, record, label in zip(paths, records, _labels(records), strict=True):
        plan = dataclasses.replace(record.plan(), device=chosen)
        registry.get("networks", (plan.track.student_network or plan.track.network).name)
        context = RunContext(plan, registry, path.parent, data_root, shared=shared)
        RunFolder.__init__(context, path.absolute())  # wherever it was moved to
        runs.append(TransferRun(path, record, label, context))
    for run in runs:
        if run.context.data_hashes != (run.data.train_sha256, run.data.evaluation_sha256):
            raise UsageError(f"the data under {data_root} are not those of {run.path}")
    return runs


def _read(path: Path) -> Record:
    if not path.is_dir():
        raise UsageError(f"{path} is no folder of a run")
    record = read_record(path / RECORD_FILE)
    if record.status != "complete" or not record.students:
        raise UsageError(f"{path} did not end; there are no students to attack")
    folder = RunFolder(path)
    for one in record.students:
        if not folder.student_path(one.index).is_file():
            raise UsageError(
                f"{path} keeps no student {one.index}, as published and cleaned runs do; "
                f"{_again(path, record)}"
            )
    if not folder.set_path.is_file():
        raise UsageError(f"{path} keeps no distilled set; {_again(path, record)}")
    return record


def _again(path: Path, record: Record) -> str:
    """What makes the students of a run again."""
    if record.method.plugin == "builtin" or record.method.reference:
        return f"run it again into another folder: {record.command_to_repeat} --out DIR"
    split = " (of its own split)" if record.split == "validation" else ""
    return f"train them again{split}: robustdd evaluate {path} --out DIR"


def check_alike(path: Path, record: Record, first: Path, other: Record) -> None:
    """Raise UsageError unless examples of one run can be tried on the other."""
    assert record.data is not None
    assert other.data is not None

    def refuse(what: str) -> UsageError:
        return UsageError(f"{path} and {first} cannot be held against each other: {what}")

    one, two = record.track, other.track
    if record.data.dataset != other.data.dataset:
        raise refuse(f"their datasets are {record.data.dataset} and {other.data.dataset}")
    if record.split != other.split:
        raise refuse(f"one is judged on the {record.split} split, one on the {other.split} split")
    if record.data.evaluation_sha256 != other.data.evaluation_sha256:
        raise refuse(f"tracks {one.id} and {two.id} judge on other images")
    if one.threat.norm != two.threat.norm:
        raise refuse(f"their norms are {one.threat.norm} and {two.threat.norm}")


def _labels(records: Sequence[Record]) -> list[str]:
    """The shortest kind of name that tells all runs apart."""
    kinds: tuple[Callable[[Record], str], ...] = (
        lambda one: one.method.name,
        lambda one: f"{one.method.name}-{one.seed}",
        lambda one: f"{one.method.name}@{one.track.name}",
        lambda one: f"{one.method.name}-{one.seed}@{one.track.name}",
        lambda one: f"{one.method.name}-{one.run_id}",
    )
    for kind in kinds:
        labels = [kind(record) for record in records]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{record.run_id}-{place}" for place, record in enumerate(records)]


def common_eps(runs: Sequence[TransferRun], eps: float | None) -> float:
    """The eps to attack at: the one given, or the headline of all tracks.

    Raises:
        UsageError: it is out of range, or the tracks differ and none is given.
    """
    threat = runs[0].record.track.threat
    if eps is not None:
        most = 1.0 if threat.norm == "Linf" else 100.0
        if not 0 < eps <= most:
            raise UsageError(f"eps must lie in (0, {most:g}] in {threat.norm}, not {eps:g}")
        return eps
    headlines = sorted({run.record.track.threat.headline for run in runs})
    if len(headlines) > 1:
        several = " and ".join(map(eps_label, headlines))
        raise UsageError(f"the runs' tracks have the headline eps {several}; give one (--eps)")
    return headlines[0]


def configured_attack(
    runs: Sequence[TransferRun], registry: Registry, name: str, overrides: Mapping[str, Any]
) -> Attack:
    """An attack: with the settings of the first run's suite if it is there, else its defaults.

    Args:
        runs: the runs.
        registry: the installed plugins.
        name: a registered attack.
        overrides: settings by name.

    Raises:
        UsageError: there is none of that name, it has no such setting, does not know the norm, or
            needs other students to make its examples.
    """
    entry = registry.get("attacks", name)
    kind = entry.load()
    owner = f"attack {name!r}"
    planned = next((one for one in runs[0].record.attacks if one.name == name), None)
    own = config_class(kind, owner)
    values = {} if planned is None else {**earlier_values(own), **planned.config}
    config = build_config(own, {**values, **overrides}, owner)
    with blame(entry.plugin, owner):
        made = kind(config)
    norm = runs[0].record.track.threat.norm
    if not isinstance(made, Attack):
        raise UsageError(f"plugin {entry.plugin!r}: {name!r} is not an Attack")
    if made.uses_sources:
        raise UsageError(
            f"attack {name!r} makes its examples on other students of a run already; choose one "
            "that attacks a single student, such as pgd"
        )
    if norm not in made.norms:
        raise UsageError(f"attack {name!r} does not attack in {norm}, the norm of these runs")
    return made

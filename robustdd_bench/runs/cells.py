"""The cells of a run: experts, distillation, each student, each attack on each student.

A cell is a function of the plan and of files that earlier cells wrote; its output is one file, and
beside it stands a receipt `<file>.cell.json` with the hash of the output and what it cost. A cell
with a valid receipt is never run again. An executor decides where and in which order cells of one
stage run; `run_cell` is all that a remote worker needs, given the plan and the folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.config import build_config
from robustdd_bench.distillers import (
    DistilledSet,
    Distiller,
    DistillTask,
    Part,
    Progress,
    Reporter,
    StagedDistiller,
)
from robustdd_bench.errors import PluginError, RobustDDError, UsageError
from robustdd_bench.evaluation.robustness import (
    AttackOutcome,
    Violations,
    attack_student,
    classified,
    pack_bits,
    unpack_bits,
)
from robustdd_bench.evaluation.sanity import check_student
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.files import (
    file_sha256,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.datasets import ImageData, Split, stratified_holdout
from robustdd_bench.protocol.networks import NetworkFactory
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.runs.environment import PeakMemory
from robustdd_bench.runs.plan import Plan, method_entry
from robustdd_bench.toolkit.seeds import Seeds

STAGES = ("experts", "distill", "students", "attacks", "sanity")


@dataclass(frozen=True, slots=True)
class Cell:
    """One unit of work."""

    stage: str
    """One of `STAGES`."""
    name: str
    """Unique within the run, e.g. "attacks/3/pgd"."""
    output: Path
    student: int | None = None
    attack: str | None = None

    @property
    def receipt(self) -> Path:
        """Where the receipt lies."""
        return self.output.with_name(self.output.name + ".cell.json")

    def done(self) -> bool:
        """Whether the output is there, whole and as it was when the cell ended."""
        try:
            receipt = json.loads(self.receipt.read_text(encoding="utf-8"))
            return bool(file_sha256(self.output) == receipt["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True, slots=True)
class Work:
    """What a cell did, for its throughput."""

    items: int
    unit: str


class Workbench:
    """Everything cells need, made from the plan when first used.

    Args:
        plan: the run.
        registry: the installed plugins.
        out: the folder under which runs and the shared store live.
        data_root: where datasets are looked for.
        download: whether a missing dataset may be downloaded.
    """

    def __init__(
        self, plan: Plan, registry: Registry, out: Path, data_root: Path, *, download: bool = False
    ) -> None:
        self.plan = plan
        self.registry = registry
        self.folder = plan.folder(out)
        self.store = out / "store"
        self.data_root = data_root
        self.download = download
        self.device = torch.device(plan.device)
        self.seeds = Seeds(plan.seed, plan.track.name, plan.method)
        self._factories: dict[Preprocessing, NetworkFactory] = {}

    @cached_property
    def _data(self) -> ImageData:
        spec = self.plan.track.data
        entry = self.registry.get("datasets", spec.dataset)
        try:
            data = entry.load()(self.data_root, self.download, **spec.options)
        except RobustDDError:
            raise
        except TypeError as error:
            raise UsageError(f"track {self.plan.track.name!r}, data.options: {error}") from error
        except Exception as error:
            raise PluginError(
                f"plugin {entry.plugin!r}: dataset {entry.name!r} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        assert isinstance(data, ImageData)
        return data.check(spec.dataset)

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        """What is trained on, and what is evaluated on; the test split is touched only here."""
        data, spec = self._data, self.plan.track.data
        if self.plan.split == "test":
            return data.train, data.test
        kept, held = stratified_holdout(
            data.train.labels, spec.validation_fraction, spec.split_seed
        )
        return data.train.take(kept), data.train.take(held)

    @cached_property
    def train(self) -> Split:
        """The training images, on the device."""
        return self._splits[0].to(self.device)

    @cached_property
    def evaluation(self) -> Split:
        """The images students are judged on, on the device."""
        return self._splits[1].to(self.device)

    @property
    def num_classes(self) -> int:
        """K."""
        return self._data.num_classes

    @property
    def shape_CHW(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self._data.train.images.shape[1:])

    @cached_property
    def data_hashes(self) -> tuple[str, str]:
        """Hashes of the training and the evaluation split."""
        return self._splits[0].sha256(), self._splits[1].sha256()

    @property
    def preprocessing(self) -> Preprocessing:
        """The track's preprocessing."""
        return Preprocessing(**self.plan.track.preprocessing.model_dump())

    def factory(self, preprocessing: Preprocessing) -> NetworkFactory:
        """Networks of the track behind a preprocessing layer."""
        if preprocessing not in self._factories:  # whitening is costly to fit
            spec = self.plan.track.network
            build = self.registry.get("networks", spec.name).load()
            self._factories[preprocessing] = NetworkFactory(
                build,
                spec.options,
                self.shape_CHW,
                self.num_classes,
                preprocessing,
                self.train.images,
                self.device,
            )
        return self._factories[preprocessing]

    def threat(self, eps: float) -> ThreatModel:
        """The track's threat model at an eps."""
        return ThreatModel(self.plan.track.threat.norm, eps)

    @cached_property
    def distiller(self) -> Distiller:
        """The method, configured."""
        plan = self.plan
        plugged = method_entry(self.registry, plan.method).load()
        config = build_config(plugged.Config, plan.config, f"method {plan.method!r}")
        with blame(plan.plugin, f"method {plan.method!r}"):
            distiller = plugged(config)
        if not isinstance(distiller, Distiller):
            raise PluginError(f"plugin {plan.plugin!r}: {plan.method!r} is not a Distiller")
        return distiller

    @property
    def reference(self) -> bool:
        """Whether the method is an end of the scale rather than a distilled set."""
        return bool(self.distiller.reference)

    def attack(self, name: str) -> Attack:
        """An attack of the suite, configured."""
        planned = next(a for a in self.plan.attacks if a.name == name)
        plugged = self.registry.get("attacks", name).load()
        config = build_config(plugged.Config, planned.config, f"attack {name!r}")
        with blame(planned.plugin, f"attack {name!r}"):
            attack = plugged(config)
        if not isinstance(attack, Attack):
            raise PluginError(f"plugin {planned.plugin!r}: {name!r} is not an Attack")
        return attack

    @cached_property
    def task(self) -> DistillTask:
        """What the method gets. The evaluation split is not in it."""
        track = self.plan.track
        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        return DistillTask(
            images=self.train.images,
            labels=self.train.labels,
            num_classes=self.num_classes,
            ipc=track.data.ipc,
            network=self.factory(self.preprocessing),
            preprocessing=self.preprocessing,
            threat=self.threat(track.threat.headline),
            augmentation=track.students.augmentation,
            device=self.device,
            seeds=self.seeds,
            work_dir=work,
            store_dir=self.store,
            data_sha256=self.data_hashes[0],
            allow_flip=track.data.flip,
            network_with=self.factory,
        )

    @property
    def set_path(self) -> Path:
        """The distilled set."""
        return self.folder / "distilled.safetensors"

    def distilled(self) -> DistilledSet:
        """The distilled set, read from its file."""
        return DistilledSet.load(self.set_path)

    def student(self, index: int) -> nn.Module:
        """A trained student, read from its file, in eval mode with frozen weights."""
        network = self.factory(self.distilled().preprocessing or self.preprocessing)(0)
        tensors, _ = read_safetensors(self.folder / "cells" / f"student-{index}.safetensors")
        network.load_state_dict(tensors)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return network.eval()

    # The cells of each stage. Those of a stage are independent of one another.

    def cells(self, stage: str) -> list[Cell]:
        """The cells of a stage, in a fixed order."""
        folder, students = self.folder / "cells", range(self.plan.track.students.count)
        if stage == "experts":
            return [Cell(stage, f"experts/{p.name}", p.output) for p in self.parts()]
        if stage == "distill":
            return [Cell(stage, "distill", self.set_path)]
        if stage == "students":
            return [
                Cell(stage, f"students/{r}", folder / f"student-{r}.safetensors", student=r)
                for r in students
            ]
        if stage == "attacks":
            return [
                Cell(stage, f"attacks/{r}/{a.name}", folder / f"{a.name}-{r}.json", r, a.name)
                for r in students
                for a in self.plan.attacks
            ]
        return [Cell(stage, f"sanity/{r}", folder / f"sanity-{r}.json", r) for r in students]

    def parts(self) -> tuple[Part, ...]:
        """Independent work before the distillation, for methods that have any."""
        if not isinstance(self.distiller, StagedDistiller):
            return ()
        with blame(self.plan.plugin, f"method {self.plan.method!r}"):
            return tuple(self.distiller.parts(self.task))


@contextlib.contextmanager
def blame(plugin: str, what: str) -> Iterator[None]:
    """Turn any exception of a plugin's code into a PluginError that names it."""
    try:
        yield
    except RobustDDError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise PluginError(
            f"plugin {plugin!r}: {what} failed: {type(error).__name__}: {text}"
        ) from error


class _Counter:
    """A reporter that counts the steps of the outermost progress bar, for the throughput."""

    def __init__(self, inner: Reporter) -> None:
        self.inner = inner
        self.steps = 0
        self._depth = 0

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        outer = self
        with self.inner.progress(title, total) as bar:
            self._depth += 1
            counted = self._depth == 1

            class Counted:
                def advance(self, steps: int = 1) -> None:
                    bar.advance(steps)
                    if counted:
                        outer.steps += steps

            try:
                yield Counted()
            finally:
                self._depth -= 1

    def metrics(self, step: int, **values: float | Tensor) -> None:
        self.inner.metrics(step, **values)

    def note(self, text: str) -> None:
        self.inner.note(text)


def run_cell(bench: Workbench, cell: Cell, reporter: Reporter) -> None:
    """Run a cell and write its receipt; do nothing if that is done already."""
    if cell.done():
        return
    memory = PeakMemory(bench.plan.device)
    start = time.perf_counter()
    work = _WORK[cell.stage](bench, cell, reporter)
    if bench.plan.device == "cuda":
        torch.cuda.synchronize()
    wall = time.perf_counter() - start
    write_json(
        cell.receipt,
        {
            "cell": cell.name,
            "sha256": file_sha256(cell.output),
            "wall_s": round(wall, 6),
            "peak_bytes": memory.read(),
            "items": work.items,
            "unit": work.unit,
        },
    )


def _experts(bench: Workbench, cell: Cell, reporter: Reporter) -> Work:
    distiller = bench.distiller
    assert isinstance(distiller, StagedDistiller)
    part = next(p for p in bench.parts() if p.output == cell.output)
    counter = _Counter(reporter)
    with blame(bench.plan.plugin, f"method {bench.plan.method!r}, part {part.name!r}"):
        distiller.make_part(part, bench.task, counter)
    if not part.output.is_file():
        raise PluginError(
            f"plugin {bench.plan.plugin!r}: part {part.name!r} did not write {part.output.name}"
        )
    return Work(counter.steps * len(bench.train), "images")


def _distill(bench: Workbench, cell: Cell, reporter: Reporter) -> Work:
    plan = bench.plan
    counter = _Counter(reporter)
    with blame(plan.plugin, f"method {plan.method!r}"):
        distilled = bench.distiller.distill(bench.task, counter)
    if not isinstance(distilled, DistilledSet):
        raise PluginError(
            f"plugin {plan.plugin!r}: method {plan.method!r} must return a DistilledSet, "
            f"not {type(distilled).__name__}"
        )
    ipc = None if bench.reference else plan.track.data.ipc
    distilled.check(bench.shape_CHW, bench.num_classes, ipc)
    distilled.save(cell.output)
    return Work(counter.steps, "steps")


def _students(bench: Workbench, cell: Cell, reporter: Reporter) -> Work:
    assert cell.student is not None
    plan, index = bench.plan, cell.student
    distilled = bench.distilled()
    seeds = bench.seeds.shared()
    network = bench.factory(distilled.preprocessing or bench.preprocessing)(
        seeds.seed("student-init", index)
    )
    student = train_student(
        network,
        distilled,
        plan.track.students,
        seeds,
        index,
        flip=plan.track.data.flip,
        reporter=reporter,
    )
    evaluation = bench.evaluation
    clean = classified(
        student.network, evaluation.pixels(), evaluation.labels, plan.track.threat.batch_size
    )
    facts = {
        "index": index,
        "seed": seeds.seed("student-init", index),
        "sha256": student.sha256(),
        "steps": student.steps,
        "learning_rate": student.learning_rate,
        "final_loss": student.final_loss,
        "train_accuracy": student.train_accuracy,
        "clean": pack_bits(clean),
    }
    write_safetensors(
        cell.output, student.network.state_dict(), {"student": json.dumps(facts, sort_keys=True)}
    )
    images = student.steps * min(plan.track.students.batch_size, len(distilled))
    return Work(images, "images")


def student_facts(bench: Workbench, index: int) -> dict[str, Any]:
    """What is known of a trained student, from its file."""
    _, metadata = read_safetensors(bench.folder / "cells" / f"student-{index}.safetensors")
    facts: dict[str, Any] = json.loads(metadata["student"])
    return facts


def _attacks(bench: Workbench, cell: Cell, reporter: Reporter) -> Work:
    assert cell.student is not None
    assert cell.attack is not None
    plan, index, name = bench.plan, cell.student, cell.attack
    network, attack = bench.student(index), bench.attack(name)
    clean = unpack_bits(student_facts(bench, index)["clean"])
    evaluation, plugin = bench.evaluation, bench.registry.get("attacks", name).plugin
    pixels, results, forwards = evaluation.pixels(), [], 0
    with reporter.progress(f"{name} on student {index}", len(plan.track.threat.ladder)) as progress:
        for eps in plan.track.threat.ladder:
            outcome = attack_student(
                network,
                pixels,
                evaluation.labels,
                attack,
                bench.threat(eps),
                bench.seeds.shared().seed("attack", name, index),
                plan.track.threat.batch_size,
                clean,
                name=name,
                plugin=plugin,
            )
            forwards += outcome.forwards
            results.append(outcome)
            progress.advance()
    write_json(cell.output, [outcome_to_json(outcome) for outcome in results])
    return Work(forwards, "forwards")


def outcome_to_json(outcome: AttackOutcome) -> dict[str, Any]:
    """An outcome as JSON values, less its wall time, which belongs to the receipt."""
    fields = dataclasses.asdict(outcome)
    del fields["wall_s"]
    return fields | {"robust": pack_bits(outcome.robust)}


def read_outcomes(bench: Workbench, attack: str, student: int) -> list[AttackOutcome]:
    """What an attack did to a student, an outcome for each eps of the ladder."""
    outcomes = []
    for fields in read_json(bench.folder / "cells" / f"{attack}-{student}.json"):
        values = dict(fields)
        values["threat"] = ThreatModel(**values["threat"])
        values["violations"] = Violations(**values["violations"])
        values["robust"] = unpack_bits(values["robust"])
        outcomes.append(AttackOutcome(**values, wall_s=0.0))
    return outcomes


def _sanity(bench: Workbench, cell: Cell, reporter: Reporter) -> Work:
    assert cell.student is not None
    index, plan = cell.student, bench.plan
    outcomes = []
    for attack in plan.attacks:
        outcomes += read_outcomes(bench, attack.name, index)
    evaluation = bench.evaluation
    checks = check_student(
        bench.student(index),
        evaluation.pixels(),
        evaluation.labels,
        clean=unpack_bits(student_facts(bench, index)["clean"]),
        outcomes=outcomes,
        unconstrained=bench.attack(plan.attacks[-1].name),
        seed=bench.seeds.shared().seed("sanity", index),
        batch_size=plan.track.threat.batch_size,
    )
    write_json(
        cell.output,
        [{"name": c.name, "passed": bool(c.passed), "evidence": c.evidence} for c in checks],
    )
    return Work(len(checks), "checks")


_WORK = {
    "experts": _experts,
    "distill": _distill,
    "students": _students,
    "attacks": _attacks,
    "sanity": _sanity,
}

"""What each kind of cell does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.distillers import DistilledSet, Progress, Reporter, StagedDistiller
from robustdd_bench.errors import PluginError, RobustDDError, RunFailedError
from robustdd_bench.evaluation.outcomes import accuracy, pack_bits, standing, unpack_bits
from robustdd_bench.evaluation.robustness import AttackOutcome, Violations
from robustdd_bench.evaluation.sanity.student_checks import check_student
from robustdd_bench.evaluation.sanity.suite_checks import strongest_iterative
from robustdd_bench.evaluation.witnesses import Witnesses, merge, rounded, save
from robustdd_bench.executors import Cell, Receipt
from robustdd_bench.files import read_json, write_json, write_safetensors
from robustdd_bench.records.environment import PeakMemory, process
from robustdd_bench.records.set_info import plain_set
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.judging import attacked, teacher_network, trained_student
from robustdd_bench.runs.progress.reporter import RunReporter
from robustdd_bench.text.terminal import size_text
from robustdd_bench.toolkit.augment import Augmenter
from robustdd_bench.toolkit.fast.allocator import keep_memory


@dataclass(frozen=True, slots=True)
class Work:
    """What a cell did, for its throughput."""

    items: int
    unit: str


def run_cell(context: RunContext, cell: Cell, reporter: RunReporter) -> Receipt:
    """Run a cell and write its receipt; give that which is there if it is done already."""
    found = cell.receipt()
    if found is not None:
        return found
    if context.device.type != context.plan.device:
        raise RunFailedError(f"{cell.name} needs a CUDA device, and this process has none")
    keep_memory()
    memory = PeakMemory(context.plan.device)
    start = time.perf_counter()
    about_students = cell.stage in ("students", "attacks", "sanity")
    with context.network_code() if about_students else contextlib.nullcontext():
        work = _WORK[cell.stage](context, cell, reporter)
    if context.plan.device == "cuda":
        torch.cuda.synchronize()
    wall_s = time.perf_counter() - start
    reporter.flush()  # a cell that is done is never run again, so its values must be written
    return cell.sign(
        wall_s=wall_s,
        peak_bytes=memory.read(),
        items=work.items,
        unit=work.unit,
        process=process(context.plan.device),
    )


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many CPU threads; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Counter:
    """A reporter that counts work, or the steps of the outermost progress bar where none is told.

    It is for the throughput.
    """

    def __init__(self, inner: Reporter) -> None:
        self.inner = inner
        self.steps = 0
        self._told: Work | None = None
        self._depth = 0

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        outer = self
        with self.inner.progress(title, total) as bar:
            self._depth += 1
            counted = self._depth == 1

            class Counted:
                first = True

                def advance(self, steps: int = 1) -> None:
                    bar.advance(steps)
                    # A first jump tells of work that a killed process did: this one has not.
                    if counted and not (self.first and steps > 1):
                        outer.steps += steps
                    self.first = self.first and steps == 0

            try:
                yield Counted()
            finally:
                self._depth -= 1

    def metrics(self, step: int, **values: float | Tensor) -> None:
        self.inner.metrics(step, **values)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def work(self, items: int, unit: str) -> None:
        self._told = Work(items + (self._told.items if self._told else 0), unit)

    def done(self) -> Work:
        """What was done."""
        return self._told or Work(self.steps, "steps")

    def images(self, step: int, total: int, current: Callable[[], DistilledSet]) -> None:
        self.inner.images(step, total, current)


def _experts(context: RunContext, cell: Cell, reporter: Reporter) -> Work:
    distiller = context.distiller
    assert isinstance(distiller, StagedDistiller)
    part = next(p for p in context.parts() if p.output == cell.output)
    counter = _Counter(reporter)
    with context.method(f", part {part.name!r}"):
        distiller.make_part(part, context.task, counter)
    if not part.output.is_file():
        raise PluginError(
            f"plugin {context.plan.plugin!r}: part {part.name!r} did not write {part.output.name}"
        )
    return counter.done()


def _distill(context: RunContext, cell: Cell, reporter: Reporter) -> Work:
    plan = context.plan
    counter = _Counter(reporter)
    with context.method():
        distilled = context.distiller.distill(context.task, counter)
        if not isinstance(distilled, DistilledSet):
            raise PluginError(
                f"plugin {plan.plugin!r}: method {plan.method!r} must return a DistilledSet, "
                f"not {type(distilled).__name__}"
            )
        distilled = plain_set(distilled, context.train.images)
    ipc = None if context.reference else plan.track.data.ipc
    distilled.check(context.shape_CHW, context.num_classes, ipc)
    _check_weight(context, distilled)
    _check_recipe(context, distilled)
    distilled.save(cell.output)
    return counter.done()


def _check_weight(context: RunContext, distilled: DistilledSet) -> None:
    """Refuse a teacher that weighs more than the track allows."""
    teaching, teacher = context.plan.track.students.teaching, distilled.teacher
    if teaching is None or teacher is None or teacher.stored_bytes <= teaching.max_bytes:
        return
    raise RunFailedError(
        f"the teacher weighs {size_text(teacher.stored_bytes)}, and the track allows "
        f"{size_text(teaching.max_bytes)}; choose a smaller one"
    )


def _check_recipe(context: RunContext, distilled: DistilledSet) -> None:
    """Refuse a set that no student could be trained on, before it is written."""
    plan = context.plan
    try:
        json.dumps([distilled.learning_rate, dict(distilled.provenance)], allow_nan=False)
        if distilled.augmentation is not None:
            Augmenter(distilled.augmentation, torch.Generator())
        context.student_network(distilled, 0)
        teacher_network(context, distilled)
    except (RobustDDError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise PluginError(
            f"plugin {plan.plugin!r}: the set of method {plan.method!r} cannot be used: {text}"
        ) from error


def _students(context: RunContext, cell: Cell, reporter: Reporter) -> Work:
    plan, (index,) = context.plan, cell.students
    distilled = context.distilled()
    student, clean = trained_student(context, distilled, index, reporter)
    reporter.metrics(
        index, loss=student.final_loss, train_accuracy=student.train_accuracy, clean=accuracy(clean)
    )
    facts = {
        "index": index,
        "seed": context.seeds.shared().seed("student-init", index),
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
    images = student.steps * min(plan.track.students.batch_size, distilled.training_images)
    return Work(images, "images")


def _attacks(context: RunContext, cell: Cell, reporter: Reporter) -> Work:
    assert cell.attack is not None
    plan, name, students = context.plan, cell.attack, cell.students
    networks = [context.student(r) for r in students]
    attack, spec = context.attack(name), plan.track.attack(name)
    clean = [unpack_bits(context.student_facts(r)["clean"]) for r in students]
    before = [
        [found for other in context.earlier(name) for found in read_outcomes(context, other, r)]
        for r in students
    ]
    plugin = context.registry.get("attacks", name).plugin
    everyone = range(plan.track.students.count) if attack.uses_sources else ()
    sources = [[context.student(s) for s in everyone if s != r] for r in students]
    results: list[dict[str, Any]] = []
    forwards = 0
    levels = plan.track.levels(spec)
    parts: list[Witnesses] = []
    with reporter.progress(f"{name} on {_students_text(students)}", len(levels)) as progress:
        for eps in levels:

            def keep(position: int, places: Tensor, moved: Tensor, eps: float = eps) -> None:
                parts.append(
                    _witnesses(context, networks[position], students[position], places, moved, eps)
                )

            outcomes = attacked(
                context,
                networks,
                students,
                attack,
                name,
                eps,
                [standing(bits, found, eps) for bits, found in zip(clean, before, strict=True)],
                examples=spec.examples,
                plugin=plugin,
                keep=keep if context.witnesses else None,
                sources=sources,
                note=reporter.note,
            )
            for r, found, outcome in zip(students, before, outcomes, strict=True):
                if spec.on == "survivors":
                    found.append(outcome)
                forwards += outcome.forwards
                results.append({"student": r} | outcome_to_json(outcome))
            progress.advance()
    context.witness_path(name, students).unlink(missing_ok=True)  # of an earlier outcome
    write_json(cell.output, results)
    if context.witnesses:
        none, pixels = torch.zeros(0, dtype=torch.int64), context.evaluation.pixels()
        parts.append(Witnesses(none, none, none.double(), pixels[:0].cpu()))
        save(cell.beside[0], merge(parts), pixels.cpu(), {"cell": cell.name})
    return Work(forwards, "forwards")


def _witnesses(
    context: RunContext,
    network: torch.nn.Module,
    student: int,
    places: Tensor,
    moved: Tensor,
    eps: float,
) -> Witnesses:
    """What an attack found against a student, on the 8-bit grid where that will do."""
    evaluation = context.evaluation
    images, labels = evaluation.pixels()[places], evaluation.labels[places]
    size = context.plan.track.threat.batch_size
    kept = rounded(network, images, moved, labels, context.threat(eps), size)
    return Witnesses(
        torch.full((len(places),), student),
        places.cpu(),
        torch.full((len(places),), eps, dtype=torch.float64),
        kept.cpu(),
    )


def _students_text(students: Sequence[int]) -> str:
    if len(students) == 1:
        return f"student {students[0]}"
    return f"students {students[0]} to {students[-1]}"


def outcome_to_json(outcome: AttackOutcome) -> dict[str, Any]:
    """An outcome as JSON values."""
    fields = dataclasses.asdict(outcome)
    return fields | {"robust": pack_bits(outcome.robust), "tried": pack_bits(outcome.tried)}


def read_outcomes(context: RunContext, attack: str, student: int) -> list[AttackOutcome]:
    """What an attack did to a student, an outcome for each eps of the ladder."""
    outcomes = []
    for fields in read_json(context.attack_path(attack, context.group_of(attack, student))):
        values = dict(fields)
        if values.pop("student") != student:
            continue
        values["threat"] = ThreatModel(**values["threat"])
        values["violations"] = Violations(**values["violations"])
        values["robust"] = unpack_bits(values["robust"])
        values["tried"] = unpack_bits(values["tried"])
        values["warnings"] = tuple(values["warnings"])
        outcomes.append(AttackOutcome(**values))
    return outcomes


def _sanity(context: RunContext, cell: Cell, reporter: Reporter) -> Work:
    (index,), plan = cell.students, context.plan
    outcomes = []
    for attack in plan.attacks:
        outcomes += read_outcomes(context, attack.name, index)
    evaluation = context.evaluation
    suite = {attack.name: context.attack(attack.name) for attack in plan.attacks}
    checks = check_student(
        context.student(index),
        evaluation.pixels(),
        evaluation.labels,
        clean=unpack_bits(context.student_facts(index)["clean"]),
        outcomes=outcomes,
        unconstrained=_strongest(suite),
        seed=context.seeds.shared().seed("sanity", index),
        batch_size=plan.track.threat.batch_size,
        suite=suite,
        headline=context.threat(plan.track.threat.headline),
        compile=context.compile,
    )
    write_json(
        cell.output,
        [{"name": c.name, "passed": bool(c.passed), "evidence": c.evidence} for c in checks],
    )
    return Work(len(checks), "checks")


def _strongest(suite: Mapping[str, Attack]) -> Attack:
    """The attack that has to succeed where it may do nearly anything: gradients and steps."""
    return suite[strongest_iterative(suite) or list(suite)[-1]]


_WORK = {
    "experts": _experts,
    "distill": _distill,
    "students": _students,
    "attacks": _attacks,
    "sanity": _sanity,
}

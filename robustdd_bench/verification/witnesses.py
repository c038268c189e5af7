"""Verification: what a record claims, held against its witnesses.

The students are taken from the run's folder, or trained again on its distilled set; then one
forward pass over the witnesses proves which examples fall. Nothing that the record says of
robustness is believed: the accuracy that is left is an upper bound of its own.

The attacks are not run; `robustdd_bench.verification.reevaluate` does that.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from robustdd_bench.board.pairing import outcomes_of
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.statistics.comparison import Bits
from robustdd_bench.evaluation.students import weights_sha256
from robustdd_bench.evaluation.witnesses import Witnesses, load, proven
from robustdd_bench.filenames import CELLS_FOLDER, WITNESSES_FILE
from robustdd_bench.plugins import Registry
from robustdd_bench.records.parts import StudentResult
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.pipeline import ReporterFactory
from robustdd_bench.verification.setup import Setup, VerifyOptions, run_on, set_up

OTHER_WEIGHTS = 0.01
"""How far accuracies may lie apart where students trained again are not the same to the bit (other
hardware, another torch)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WitnessedLevel:
    """One eps (0: clean), means over students in [0,1]."""

    eps: float
    claimed: float
    """What the record says."""
    left: float
    """What the witnesses leave standing."""
    unproven: int
    """Examples that fell by the record and have no valid witness, over all students."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of a verification."""

    levels: tuple[WitnessedLevel, ...]
    witnesses: int
    same_weights: bool
    """Whether every student is the record's, bit for bit."""
    notes: tuple[str, ...]
    """What is other here than where the record was made."""
    faults: tuple[str, ...]
    """What the record says falsely of its data and its set."""

    @property
    def agrees(self) -> bool:
        """Whether the record's claims are proven."""
        if self.faults:
            return False
        if self.same_weights:
            return all(level.unproven == 0 and level.left == level.claimed for level in self.levels)
        return all(abs(level.left - level.claimed) <= OTHER_WEIGHTS for level in self.levels)


def verify_witnesses(
    source: Path,
    registry: Registry,
    options: VerifyOptions,
    *,
    reporter: ReporterFactory,
    witnesses: Path | None = None,
) -> Verdict:
    """Hold a run, published or not, against its witnesses.

    Args:
        source: its folder, or the path of its record.
        registry: the installed plugins; the method itself is not run, but for reference rows,
            whose set is not published.
        options: where it is verified; all students and all examples are.
        reporter: makes the reporter for a (temporary) folder.
        witnesses: their file; by default that in the folder.

    Raises:
        UsageError: files are missing or damaged, or belong to another run or other data, or the
            options leaves out students or examples.
    """
    if options.students is not None or options.examples is not None:
        raise UsageError("--students and --examples make attacks cheaper; witnesses need none")
    with set_up(source, registry, options, reporter) as setup:
        path = witnesses or setup.folder / WITNESSES_FILE
        if not path.is_file():
            command = f"{setup.record.command_to_repeat} --witnesses"
            raise UsageError(f"there are no witnesses at {path}; make them: {command}")
        found = read_witnesses(setup, path)
        context = setup.context
        there = {
            student.index
            for student in setup.record.students
            if _taken(context, setup.folder, student)
        }
        cells = [cell for cell in cells_of(context, "students") if not there & {*cell.students}]
        run_on(context, setup.executor, reporter, cells)
        return _judge(setup, found)


def read_witnesses(setup: Setup, path: Path) -> Witnesses:
    """The witnesses of a record, of the examples that are judged.

    Raises:
        UsageError: missing, damaged, or of another run or other data.
    """
    context = setup.context
    found, about = load(path, context.whole_evaluation.pixels())
    if about.get("run_id") != setup.record.run_id:
        raise UsageError(f"{path} holds the witnesses of run {about.get('run_id', '?')[:12]}")
    return found.take((found.place < len(context.evaluation)).nonzero().squeeze(1))


def fallen(context: RunContext, found: Witnesses) -> Bits:
    """Which examples witnesses prove to fall, of each student that is judged: (L,K,N).

    The first level is without an attack, where nothing is proven.
    """
    evaluation, threat = context.evaluation, context.plan.track.threat
    table = []
    for index in context.judged:
        own = found.take((found.student == index).nonzero().squeeze(1))
        network = context.student(index)
        falls = [torch.zeros(len(evaluation), dtype=torch.bool)]
        falls += [
            proven(
                network,
                evaluation.pixels(),
                evaluation.labels,
                own,
                context.threat(eps),
                threat.batch_size,
            )
            for eps in threat.ladder
        ]
        table.append(torch.stack(falls))
    stacked: Bits = torch.stack(table, 1).numpy()
    return stacked


def _taken(context: RunContext, run: Path, student: StudentResult) -> bool:
    """Take a student from the run's folder, if it is there and is the record's."""
    target = context.student_path(student.index)
    source = run / CELLS_FOLDER / target.name
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with contextlib.suppress(UsageError, KeyError, ValueError, RuntimeError):
        if context.student_facts(student.index)["sha256"] == student.sha256 and (
            weights_sha256(context.student(student.index)) == student.sha256
        ):
            return True
    target.unlink()
    return False


def _judge(setup: Setup, found: Witnesses) -> Verdict:
    context, record = setup.context, setup.record
    evaluation, size = context.evaluation, context.plan.track.threat.batch_size
    levels = (0.0, *context.plan.track.threat.ladder)
    networks = [context.student(student.index) for student in record.students]
    right = torch.stack(
        [classified(network, evaluation.pixels(), evaluation.labels, size) for network in networks]
    ).numpy()
    said = outcomes_of(record.students, levels)
    falls = fallen(context, found)
    return Verdict(
        levels=tuple(
            WitnessedLevel(
                eps=eps,
                claimed=float(claimed.mean()),
                left=float((right & ~proof).mean()),
                unproven=int((said[0] & ~claimed & ~proof).sum()),
            )
            for eps, claimed, proof in zip(levels, said, falls, strict=True)
        ),
        witnesses=len(found),
        same_weights=all(
            weights_sha256(network) == student.sha256
            for network, student in zip(networks, record.students, strict=True)
        ),
        notes=setup.notes,
        faults=setup.faults,
    )

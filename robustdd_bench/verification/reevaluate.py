"""Verification by re-evaluation: the students of a record trained and attacked once more.

What is published is the distilled set; from it students are trained again with the record's seeds,
never taken from the folder, then attacked by the track's whole suite, and every sanity check is
made again. What is found is held against what is claimed of the same students and examples
(`robustdd_bench.verification.agreement`).

Robust accuracy is an upper bound, so the two ways to differ are not alike. A claim above what was
found is refused. A claim below it may be right: a stronger attack, or a luckier start, leaves less
standing. It is accepted where the record's witnesses bring what was found down to it, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustdd_bench.board.pairing import outcomes_of
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.evaluation.statistics.comparison import Bits, Interval
from robustdd_bench.evaluation.witnesses import Witnesses
from robustdd_bench.filenames import WITNESSES_FILE
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.parts import Flag, StudentResult
from robustdd_bench.runs.assemble import judged_students
from robustdd_bench.runs.pipeline import ReporterFactory
from robustdd_bench.verification.agreement import Agreement, agreement
from robustdd_bench.verification.setup import Setup, VerifyOptions, set_up
from robustdd_bench.verification.witnesses import fallen, read_witnesses

Word = Literal[
    "agrees",
    "claims more than was found",
    "claims less, as its witnesses prove",
    "claims less than was found, unproven",
]
AGREES: Word = "agrees"
MORE: Word = "claims more than was found"
PROVEN: Word = "claims less, as its witnesses prove"
UNPROVEN: Word = "claims less than was found, unproven"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReevaluatedLevel:
    """One eps (0: clean), means over the students judged, in [0,1]."""

    eps: float
    claimed: float
    """What the record says of these students and examples."""
    found: float
    difference: float
    """claimed - found."""
    interval: Interval
    """Of the difference; 95 % for all levels together."""
    left: float | None
    """What the witnesses leave of what was found; None where they were not looked at."""
    word: Word

    @property
    def accepted(self) -> bool:
        """Whether the claim stands."""
        return self.word in (AGREES, PROVEN)

    @property
    def name(self) -> str:
        """How the level is called in a table."""
        return eps_label(self.eps) if self.eps else "clean"


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedCheck:
    """A sanity check that passed in the record and fails here."""

    student: int
    name: str
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reevaluation:
    """What came of a re-evaluation."""

    run_id: str
    track: str
    method: str
    seed: int
    students: int
    of_students: int
    examples: int
    of_examples: int
    levels: tuple[ReevaluatedLevel, ...]
    same_weights: tuple[bool, ...]
    """Of each student, whether it is the record's, bit for bit."""
    other_outcomes: int
    """How many raw outcomes differ: of a student on an example, without an attack or under one
    at an eps."""
    outcomes: int
    """How many there are."""
    failed_checks: tuple[FailedCheck, ...]
    notes: tuple[str, ...]
    """What is other here than where the record was made."""
    faults: tuple[str, ...]
    """What the record says falsely of data, set, seeds or recipe."""

    @property
    def same_to_the_bit(self) -> bool:
        """Whether students' weights and every outcome are the record's."""
        return all(self.same_weights) and self.other_outcomes == 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the record is refused; empty where it agrees."""
        levels = (
            f"at {level.name}: {level.word} ({100 * level.claimed:.2f} % claimed, "
            f"{100 * level.found:.2f} % found)"
            for level in self.levels
            if not level.accepted
        )
        checks = (
            f"student {check.student} fails {check.name!r}: {check.evidence}"
            for check in self.failed_checks
        )
        return (*self.faults, *levels, *checks)

    @property
    def agrees(self) -> bool:
        """Whether the record can be accepted."""
        return not self.reasons


def reevaluate(
    source: Path,
    registry: Registry,
    options: VerifyOptions,
    *,
    reporter: ReporterFactory,
    witnesses: Path | None = None,
) -> Reevaluation:
    """Evaluate the set of a record again, and hold the record against what comes out.

    Args:
        source: the folder of a run, published or not, or the path of its record.
        registry: the installed plugins; the method itself is not run, but for reference rows,
            whose set is not published.
        options: where, and on how many students and examples.
        reporter: makes the reporter for a (temporary) folder.
        witnesses: file with the record's witnesses; by default that beside it, if there is one.

    Raises:
        UsageError, RunFailedError: see `set_up`; or the witnesses are missing, damaged or of
            another run.
        KeyboardInterrupt: interrupted; nothing is kept.
    """
    with set_up(source, registry, options, reporter) as setup:
        shown = _witnesses(setup, witnesses)  # what is wrong with them is told before the work
        setup.run("students", "attacks", "sanity")
        return _judge(setup, shown)


def _witnesses(setup: Setup, path: Path | None) -> Witnesses | None:
    if path is not None:
        if not path.is_file():
            raise UsageError(f"there are no witnesses at {path}")
        return read_witnesses(setup, path)
    beside = setup.folder / WITNESSES_FILE
    return read_witnesses(setup, beside) if beside.is_file() else None


def _judge(setup: Setup, witnesses: Witnesses | None) -> Reevaluation:
    context, record = setup.context, setup.record
    levels = (0.0, *context.plan.track.threat.ladder)
    students, flags = judged_students(context)
    before = record.students[: len(students)]
    size = len(context.evaluation)
    claimed = outcomes_of(before, levels)[..., :size]
    found = outcomes_of(students, levels)
    same = [one.sha256 == other.sha256 for one, other in zip(students, before, strict=True)]
    direct = agreement(claimed, found, same)
    left: list[Agreement] | None = None
    if witnesses is not None and any(level.lower for level in direct):
        left = list(agreement(claimed, _left(setup, found, witnesses), same))
    differ, total = _differ(before, students, size)
    return Reevaluation(
        run_id=record.run_id,
        track=record.track.id,
        method=record.method.name,
        seed=record.seed,
        students=len(students),
        of_students=record.track.students.count,
        examples=size,
        of_examples=setup.data.evaluation_examples,
        levels=tuple(
            ReevaluatedLevel(
                eps=eps,
                claimed=level.claimed,
                found=level.found,
                difference=level.difference,
                interval=level.interval,
                left=None if left is None else left[place].found,
                word=_word(level, None if left is None or eps == 0 else left[place]),
            )
            for place, (eps, level) in enumerate(zip(levels, direct, strict=True))
        ),
        same_weights=tuple(same),
        other_outcomes=differ,
        outcomes=total,
        failed_checks=tuple(_failed(record.flags, flags)),
        notes=setup.notes,
        faults=(*setup.faults, *_recipe(before, students)),
    )


def _left(setup: Setup, found: Bits, witnesses: Witnesses) -> Bits:
    left: Bits = found & ~fallen(setup.context, witnesses)
    return left


def _word(level: Agreement, left: Agreement | None) -> Word:
    """The verdict on a level; `left` is the claim against what the witnesses leave."""
    if level.agrees:
        return AGREES
    if not level.lower:
        return MORE
    if left is None or left.lower:
        return UNPROVEN
    return PROVEN if left.agrees else MORE


def _differ(
    claimed: tuple[StudentResult, ...], found: tuple[StudentResult, ...], size: int
) -> tuple[int, int]:
    """How many of the raw outcomes differ, and how many there are."""
    differ = total = 0
    for one, other in zip(claimed, found, strict=True):
        robust = {(result.attack, result.eps): result.robust for result in other.attacks}
        pairs = [(one.clean, other.clean)]
        pairs += [(result.robust, robust[result.attack, result.eps]) for result in one.attacks]
        for said, seen in pairs:
            differ += int((unpack_bits(said)[:size] != unpack_bits(seen)).sum())
            total += size
    return differ, total


def _failed(claimed: tuple[Flag, ...], found: tuple[Flag, ...]) -> Iterator[FailedCheck]:
    passed = {(flag.student, flag.name) for flag in claimed if flag.passed}
    for flag in found:
        if not flag.passed and (flag.student, flag.name) in passed:
            yield FailedCheck(student=flag.student, name=flag.name, evidence=flag.evidence)


def _recipe(claimed: tuple[StudentResult, ...], found: tuple[StudentResult, ...]) -> Iterator[str]:
    """Seeds and recipe that are not those that the track and the run's seed give.

    They do not depend on the machine. A record may choose no seeds: some are luckier than others.
    """
    for one, other in zip(claimed, found, strict=True):
        for key in ("seed", "steps", "learning_rate"):
            said, is_so = getattr(one, key), getattr(other, key)
            if said != is_so:
                yield f"student {one.index}: the record says {key} {said}, the track gives {is_so}"
        seeds = {(result.attack, result.eps): result.seed for result in other.attacks}
        odd = {r.attack for r in one.attacks if r.seed != seeds[r.attack, r.eps]}
        for name in sorted(odd):
            yield f"student {one.index}: the seed of attack {name} is not the track's"

"""Verification with fresh students: the published set, judged with seeds that nobody could know.

The seeds of students and attacks follow from a run's seed, so a method can be made for them, or the
luckiest run be published. If the record is honest, students trained here with other seeds are as
good as the record's, up to the luck of training; `evaluation.randomisation` tests that.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustdd_bench.board.pairing import outcomes_of
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.statistics.randomisation import compare_groups, smallest_p
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.runs.assemble import judged_students
from robustdd_bench.runs.cells import all_cells
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.pipeline import ReporterFactory
from robustdd_bench.verification.agreement import TOLERANCE
from robustdd_bench.verification.setup import Setup, VerifyOptions, run_on, set_up

SIGNIFICANCE = 0.01
"""Probability that an honest record is refused, at most."""
MOST_STUDENTS = 1000
SEEDS = 2**32
Word = Literal["agrees", "higher than fresh students", "lower than fresh students"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FreshLevel:
    """One eps (0: clean); accuracies in [0,1]."""

    eps: float
    claimed: float
    """Mean over the record's students."""
    fresh: float
    """Mean over the fresh ones."""
    claimed_values: tuple[float, ...]
    fresh_values: tuple[float, ...]
    above: int
    """How many fresh students are above the record's mean."""
    p_higher: float
    """Probability, were the record's students as the fresh ones, of a difference at any level that
    is as large as this one for its spread; exact up to 200,000 relabelings."""
    p_lower: float
    word: Word

    @property
    def difference(self) -> float:
        """The record's mean less the fresh one."""
        return self.claimed - self.fresh

    @property
    def name(self) -> str:
        """How the level is called in a table."""
        return eps_label(self.eps) if self.eps else "clean"


@dataclass(frozen=True, kw_only=True, slots=True)
class FreshVerdict:
    """What came of it."""

    run_id: str
    track: str
    method: str
    seed: int
    fresh_seed: int
    """Base of the seeds of the fresh students and of the attacks on them."""
    students: int
    """Of the record."""
    fresh_students: int
    examples: int
    levels: tuple[FreshLevel, ...]
    failed_checks: tuple[str, ...]
    """Sanity checks that fail for fresh students; they are no reason against the record."""
    notes: tuple[str, ...]
    faults: tuple[str, ...]
    """What the record says falsely of its data and its set."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the record is refused; empty where it agrees."""
        levels = (
            f"at {level.name}: {level.word} ({100 * level.claimed:.2f} % claimed, "
            f"{100 * level.fresh:.2f} % fresh, p = {level.p_higher:.2g})"
            for level in self.levels
            if level.word == "higher than fresh students"
        )
        return (*self.faults, *levels)

    @property
    def agrees(self) -> bool:
        """Whether the record can be accepted."""
        return not self.reasons


def verify_fresh(
    source: Path,
    registry: Registry,
    options: VerifyOptions,
    *,
    count: int,
    seed: int | None = None,
    reporter: ReporterFactory,
) -> FreshVerdict:
    """Judge the set of a record with fresh students.

    Args:
        source: the folder of a run, published or not, or the path of its record.
        registry: the installed plugins; the method is not run, but for reference rows.
        options: where, and on how many examples.
        count: number of fresh students.
        seed: base of their seeds; None: drawn from the system now.
        reporter: makes the reporter for a (temporary) folder.

    Raises:
        UsageError: the call makes no sense, or see `set_up`.
        RunFailedError, PluginError: the evaluation failed.
        KeyboardInterrupt: interrupted; nothing is kept.
    """
    if options.students is not None:
        raise UsageError("--students chooses the record's students; --fresh-students needs all")
    if seed is not None and not 0 <= seed < SEEDS:
        raise UsageError(f"--fresh-seed must lie in 0..{SEEDS - 1}, not {seed}")
    if not 1 <= count <= MOST_STUDENTS:
        raise UsageError(f"--fresh-students must lie in 1..{MOST_STUDENTS}, not {count}")
    with set_up(source, registry, options, reporter) as setup:
        record = setup.record
        _check_count(len(record.students), count)
        if seed == record.seed:
            raise UsageError(f"--fresh-seed {seed} is the record's own seed; take another one")
        while seed is None or seed == record.seed:
            seed = secrets.randbelow(SEEDS)
        context = _bench(setup, count, seed, options)
        stages = ("students", "attacks", "sanity")
        cells = all_cells(context, stages)
        run_on(context, setup.executor, reporter, cells, f"fresh students of seed {seed}")
        return _judge(setup, context, seed)


def _check_count(students: int, count: int) -> None:
    """Raise UsageError where no difference, however large, could be significant."""
    if smallest_p(students, count) <= SIGNIFICANCE:
        return
    least = count
    while smallest_p(students, least) > SIGNIFICANCE:
        least += 1
    raise UsageError(
        f"--fresh-students {count} is too few to tell anything: the record has {students} "
        f"student{'s' * (students > 1)}, so take at least {least}"
    )


def _bench(setup: Setup, count: int, seed: int, options: VerifyOptions) -> RunContext:
    """A context with the record's set, other seeds and another number of students."""
    old = setup.context
    track = old.plan.track
    students = track.students.model_copy(update={"count": count})
    plan = dataclasses.replace(
        old.plan, track=track.model_copy(update={"students": students}), seed=seed
    )
    size = len(old.evaluation)
    context = RunContext(
        plan,
        old.registry,
        old.store.parent,
        options.data_root,
        examples=None if size == len(old.whole_evaluation) else size,
    )
    context.set_path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(old.set_path, context.set_path)
    return context


def _judge(setup: Setup, context: RunContext, seed: int) -> FreshVerdict:
    record, size = setup.record, len(context.evaluation)
    levels = (0.0, *context.plan.track.threat.ladder)
    fresh, flags = judged_students(context)
    claimed_LR = outcomes_of(record.students, levels)[..., :size].mean(2)
    fresh_LN = outcomes_of(fresh, levels).mean(2)
    rows = []
    for place, (eps, shift) in enumerate(
        zip(levels, compare_groups(claimed_LR, fresh_LN), strict=True)
    ):
        claimed, drawn = claimed_LR[place], fresh_LN[place]
        word: Word = "agrees"
        if abs(shift.difference) > TOLERANCE:
            if shift.higher <= SIGNIFICANCE:
                word = "higher than fresh students"
            elif shift.lower <= SIGNIFICANCE:
                word = "lower than fresh students"
        rows.append(
            FreshLevel(
                eps=eps,
                claimed=shift.first,
                fresh=shift.second,
                claimed_values=tuple(map(float, claimed)),
                fresh_values=tuple(map(float, drawn)),
                above=int((drawn > math.fsum(claimed) / len(claimed)).sum()),
                p_higher=shift.higher,
                p_lower=shift.lower,
                word=word,
            )
        )
    return FreshVerdict(
        run_id=record.run_id,
        track=record.track.id,
        method=record.method.name,
        seed=record.seed,
        fresh_seed=seed,
        students=len(record.students),
        fresh_students=len(fresh),
        examples=size,
        levels=tuple(rows),
        failed_checks=tuple(
            f"fresh student {flag.student} fails {flag.name!r}: {flag.evidence}"
            for flag in flags
            if not flag.passed
        ),
        notes=setup.notes,
        faults=setup.faults,
    )

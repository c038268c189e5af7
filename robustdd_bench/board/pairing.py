"""Which runs of two standings belong together, and their outcomes side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustdd_bench.board.standings import Standing
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits, worst_case
from robustdd_bench.evaluation.statistics.comparison import Bits
from robustdd_bench.records.parts import StudentResult
from robustdd_bench.records.record import Record


def by_seed(standing: Standing) -> dict[int, Record]:
    """A standing's run of each seed; of several (other threads, another torch) the first id."""
    return {record.seed: record for record in reversed(standing.records)}


def common_seeds(a: Standing, b: Standing) -> tuple[int, ...]:
    """The distillation seeds whose runs can be paired, rising.

    Raises:
        UsageError: the two were not judged on the same examples by students of the same seeds.
    """
    who = f"{a.method} and {b.method} cannot be compared: "
    first, second = a.records[0], b.records[0]
    if first.track_sha256 != second.track_sha256:
        raise UsageError(
            f"{who}one was judged by track {first.track.id}, the other by {second.track.id}"
        )
    runs_a, runs_b = by_seed(a), by_seed(b)
    seeds = tuple(sorted(runs_a.keys() & runs_b.keys()))
    if not seeds:
        raise UsageError(
            f"{who}they have no distillation seed in common ({_listed(runs_a)} and "
            f"{_listed(runs_b)}); run one of them with a seed of the other"
        )
    for seed in seeds:
        (examples_a, students_a), (examples_b, students_b) = map(
            _judge, (runs_a[seed], runs_b[seed])
        )
        if examples_a != examples_b:
            raise UsageError(f"{who}at seed {seed} they were judged on different examples")
        if students_a != students_b:
            raise UsageError(f"{who}at seed {seed} their students have different seeds")
    return seeds


def _judge(record: Record) -> tuple[str, tuple[int, ...]]:
    """Hash of the examples that a run was judged on, and the seeds of its students."""
    assert record.data is not None
    return record.data.evaluation_sha256, tuple(student.seed for student in record.students)


def judged_by(standing: Standing, seeds: Sequence[int]) -> object:
    """A key that standings share whose runs of all these seeds can be paired."""
    runs = by_seed(standing)
    return (
        standing.records[0].track_sha256,
        *((seed, *_judge(runs[seed])) for seed in seeds),
    )


def _listed(seeds: dict[int, Record]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def outcomes(record: Record, levels: Sequence[float]) -> Bits:
    """Worst-case outcomes (L, R, N) of a run at some eps of the ladder, 0 for no attack."""
    return outcomes_of(record.students, levels)


def outcomes_of(students: Sequence[StudentResult], levels: Sequence[float]) -> Bits:
    """The same of some students."""
    table = []
    for student in students:
        clean = unpack_bits(student.clean)
        bits = {
            (result.attack, result.eps): unpack_bits(result.robust)
            for result in student.attacks
            if result.eps <= max(levels)
        }
        worst = {0.0: clean} | worst_case(bits, clean, [eps for eps in levels if eps > 0])
        table.append([worst[eps].numpy() for eps in levels])
    return np.array(table, dtype=bool).swapaxes(0, 1)


def paired_outcomes(standing: Standing, seeds: Sequence[int], levels: Sequence[float]) -> Bits:
    """Outcomes (L, S, R, N) of a standing's runs of these seeds."""
    runs = by_seed(standing)
    return np.stack([outcomes(runs[seed], levels) for seed in seeds], axis=1)

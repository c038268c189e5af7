"""What a study keeps of its runs, so that every interval it states can be computed again.

A record's outcomes fill megabytes over a sweep; an interval of two runs needs no more than the
worst case of each student at each level. Packed as in records ("N:base64"), 500 examples of 3
students at 5 levels are 1.4 kB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robustdd_bench.board.pairing import outcomes
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import pack_bits, unpack_bits
from robustdd_bench.evaluation.statistics.comparison import Bits, Difference, compare
from robustdd_bench.records.record import Record

Kept = Mapping[str, Any]


def keep(record: Record) -> dict[str, Any]:
    """The outcomes of a complete run as JSON values, and what decides whom it is paired with.

    Args:
        record: the run.

    Returns:
        `levels` (0 for no attack, then the ladder), `bits` by level and student, and the keys of a
        pair: track, examples, distillation seed, seeds of the students.
    """
    assert record.data is not None
    levels = (0.0, *record.track.threat.ladder)
    return {
        "track_sha256": record.track_sha256,
        "evaluation_sha256": record.data.evaluation_sha256,
        "seed": record.seed,
        "student_seeds": [student.seed for student in record.students],
        "levels": list(levels),
        "bits": [
            [pack_bits(torch.from_numpy(bits.copy())) for bits in students]
            for students in outcomes(record, levels)
        ],
    }


def kept_bits(kept: Kept) -> Bits:
    """The outcomes (L, R, N) that `keep` packed.

    Raises:
        UsageError: they are damaged.
    """
    try:
        return np.stack(
            [
                np.stack([unpack_bits(text).numpy().astype(bool) for text in row])
                for row in kept["bits"]
            ]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"damaged outcomes of a study: {error}") from error


def differences(a: Sequence[Kept], b: Sequence[Kept]) -> list[tuple[float, Difference]]:
    """The paired differences of some runs and as many others, in order, level by level.

    Args:
        a: what was kept of the runs of A, one a distillation seed.
        b: the same of B.

    Returns:
        Each level with its difference; intervals over seeds, students and examples.

    Raises:
        UsageError: two of them were not judged alike, or there are not as many of both.
    """
    if len(a) != len(b) or not a:
        raise UsageError(f"{len(a)} runs cannot be paired with {len(b)}; name as many of both")
    for one, other in zip(a, b, strict=True):
        for key in ("track_sha256", "evaluation_sha256", "seed", "student_seeds", "levels"):
            if one[key] != other[key]:
                raise UsageError(f"the runs differ in {key.replace('_', ' ')}: they do not pair")
    levels = a[0]["levels"]
    if any(one["levels"] != levels for one in a):
        raise UsageError("the runs of one side have different ladders")
    first, second = (np.stack([kept_bits(one) for one in side], axis=1) for side in (a, b))
    return list(zip(levels, compare(first, second), strict=True))

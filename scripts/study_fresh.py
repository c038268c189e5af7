"""How often `robustdd verify --fresh-students N` refuses a record, honest or not.

    python scripts/study_fresh.py

Students are drawn with replacement from those of the published digits runs, each as its distance
from its run's mean, at all levels together (so levels depend on each other as they do), made wider
by sqrt(5/4) because each mean is over five. A record that is not honest is better by so many
standard deviations at every level. Prints JSON: the share of simulated records that are refused.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from robustdd_bench.board.pairing import outcomes_of
from robustdd_bench.evaluation.statistics.randomisation import Values, compare_groups
from robustdd_bench.records.record import read_record
from robustdd_bench.verification.agreement import TOLERANCE
from robustdd_bench.verification.fresh import SIGNIFICANCE


def residuals(root: Path, track: str) -> Values:
    """Distances of students from their run's mean, (L, students)."""
    found = []
    for path in sorted(root.glob(f"results/{track}/*/*/record.json")):
        record = read_record(path)
        if record.method.reference:
            continue
        levels = (0.0, *record.track.threat.ladder)
        values = outcomes_of(record.students, levels).mean(2)
        scale = math.sqrt(values.shape[1] / (values.shape[1] - 1))
        found.append(scale * (values - values.mean(1, keepdims=True)))
    return np.concatenate(found, 1)


def refused(pool: Values, fresh: int, shift: float, count: int) -> float:
    """The share of records of five students that are refused."""
    generator = np.random.default_rng(0)
    spread = pool.std(1, keepdims=True)
    hits = 0
    for _ in range(count):
        draw = pool[:, generator.integers(pool.shape[1], size=5 + fresh)]
        claimed, judged = draw[:, :5] + shift * spread, draw[:, 5:]
        hits += any(
            level.higher <= SIGNIFICANCE and level.difference > TOLERANCE
            for level in compare_groups(claimed, judged)
        )
    return hits / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", type=Path, default=Path("leaderboard"))
    parser.add_argument("--track", default="digits-ipc10")
    parser.add_argument("--count", type=int, default=1000)
    given = parser.parse_args()
    pool = residuals(given.board, given.track)
    table = {
        f"{fresh} fresh students": {
            f"{shift:g} sd": refused(pool, fresh, shift, given.count)
            for shift in (0.0, 1.0, 2.0, 3.0)
        }
        for fresh in (5, 10)
    }
    print(json.dumps({"students in the pool": pool.shape[1], "refused": table}, indent=2))


if __name__ == "__main__":
    main()

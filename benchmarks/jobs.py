"""Wall time of `robustdd run` and `robustdd sweep` with one job and with several, same bits.

    python benchmarks/jobs.py [--jobs 2] [--repeats 3] [--out DIR]

Each call is a process of its own into a fresh folder, one job and several in turn, so that a load
that comes and goes hits both. Printed are the medians, their ratio (above 1: several are faster),
the load of the machine, and whether the records are the same but for their costs. Nothing else
should run on the machine; the load average tells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRACK = "digits-ipc10"
SWEEP = f"""
methods = ["mat", "mtt"]
tracks = "{TRACK}"
seeds = [0, 1]
presets = {{ mat = "quick", mtt = "quick" }}
"""


def calls(folder: Path) -> dict[str, list[str]]:
    """What is measured: words after `robustdd`, by name."""
    sweep = folder / "sweep.toml"
    sweep.write_text(SWEEP, encoding="utf-8")
    return {
        "run --method mat --preset quick": ["run", "--method", "mat", "--preset", "quick"],
        "sweep of four quick runs": ["sweep", str(sweep)],
        "run --method random": ["run", "--method", "random"],
    }


def measured(words: list[str], jobs: int, out: Path) -> tuple[float, list[str]]:
    """Seconds of a call, and the hashes of what its records say of results."""
    command = [sys.executable, "-m", "robustdd_bench", *words, "--jobs", str(jobs)]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--device", "cpu", "--out", str(out)], check=True, capture_output=True
    )
    wall_s = time.perf_counter() - start
    records: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.rglob("record.json"))
    ]
    assert all(record["status"] == "complete" for record in records)
    return wall_s, [record["results_sha256"] for record in records]


def main() -> None:
    """Measure and print."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    made.add_argument("--repeats", type=int, default=3)
    options = made.parse_args()
    if options.jobs < 2:
        made.error("--jobs must be at least 2")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} before; n = {options.repeats}")
    with tempfile.TemporaryDirectory(prefix="jobs.") as name:
        folder = Path(name)
        for what, words in calls(folder).items():
            found: dict[int, list[float]] = {1: [], options.jobs: []}
            bits = set()
            for repeat in range(options.repeats):
                for jobs, seconds in found.items():
                    out = folder / f"{repeat}-{jobs}-{words[0]}-{words[-1].rpartition('/')[2]}"
                    wall_s, hashes = measured(words, jobs, out)
                    seconds.append(wall_s)
                    bits.add(tuple(hashes))
            one, several = map(statistics.median, found.values())
            same = "same results" if len(bits) == 1 else "OTHER RESULTS"
            print(
                f"{what}: 1 job {one:.1f} s, {options.jobs} jobs {several:.1f} s, "
                f"{one / several:.2f} times as fast; {same}; load {os.getloadavg()[0]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

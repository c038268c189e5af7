"""What each attack of a suite adds, and what AutoAttack would still find: docs/studies.

    python scripts/study_attacks.py RUN [RUN ...] [--students 2] [--write FILE.json]
    python scripts/study_attacks.py --draw FILE.json > tables.md

RUN is the folder of a finished run with its students (`cells/`). The suite is run as the track has
it, each attack on what all before it left; at the headline eps it is followed by APGD-T with 100
steps, by Square with 5000 queries and by standard AutoAttack, each on what is left.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from robustdd_bench.attacks import Attack
from robustdd_bench.config import build_config
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_students
from robustdd_bench.files import read_json, write_json
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.work import threads
from robustdd_bench.text.tables import markdown

BEYOND: tuple[tuple[str, dict[str, Any]], ...] = (
    ("apgd-t", {"steps": 100}),
    ("square", {"queries": 5000}),
    ("autoattack", {}),
)


def main() -> int:
    """Parse the call; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--students", type=int, default=2, help="so many of each run")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--draw", type=Path, metavar="FILE")
    call = parser.parse_args()
    if call.draw is not None:
        print(tables(read_json(call.draw)))
        return 0
    registry = collect(get_plugin_manager())
    rows: list[dict[str, Any]] = []
    for run in call.runs:
        for row in measure(run, registry, call.students):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
        if call.write is not None:
            write_json(call.write, {"students": call.students, "rows": rows})
    return 0


def measure(run: Path, registry: Registry, count: int) -> list[dict[str, Any]]:
    """A row for each attack at each eps, in the order they are run in."""
    record = read_record(run / "record.json")
    plan = record.plan()
    context = RunContext(plan, registry, run.parents[2], Path("data"))
    if context.folder != run:
        sys.exit(f"error: {run} was not made by what is installed here")
    track = plan.track
    ladder, size = track.threat.ladder, track.threat.batch_size
    networks = [context.student(r) for r in range(count)]
    images, labels = context.evaluation.pixels(), context.evaluation.labels
    clean = [classified(network, images, labels, size) for network in networks]
    left = {eps: [bits.clone() for bits in clean] for eps in ladder}

    def made(name: str, settings: dict[str, Any]) -> Attack:
        kind = registry.get("attacks", name).load()
        attack: Attack = kind(build_config(kind.Config, settings, name))
        return attack

    suite = [(spec.name, dict(spec.config), track.levels(spec)) for spec in track.attacks]
    suite += [(name, settings, (track.threat.headline,)) for name, settings in BEYOND]
    rows = []
    with threads(1):
        for position, (name, settings, levels) in enumerate(suite):
            for eps in levels:
                before, start = left[eps], time.process_time()
                seeds = [context.seeds.shared().seed("attack", name, r) for r in range(count)]
                found = attack_students(
                    networks, images, labels, made(name, settings), context.threat(eps), seeds,
                    size, before,
                )  # fmt: skip
                spent = time.process_time() - start
                rows.append(
                    {
                        "method": plan.method,
                        "attack": name,
                        "settings": settings,
                        "beyond": position >= len(track.attacks),
                        "eps": eps,
                        "before": sum(int(bits.sum()) for bits in before),
                        "after": sum(int(outcome.robust.sum()) for outcome in found),
                        "of": len(labels) * count,
                        "cpu_s": round(spent, 2),
                    }
                )
                for level in ladder:
                    if level >= eps:
                        pairs = zip(left[level], found, strict=True)
                        left[level] = [bits & outcome.robust for bits, outcome in pairs]
    return rows


def tables(results: dict[str, Any]) -> str:
    """Markdown: accuracy left after each attack, by method, at each eps."""
    rows = results["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    parts = []
    for eps in sorted({row["eps"] for row in rows}):
        here = [row for row in rows if row["eps"] == eps]
        keys = list(dict.fromkeys((row["attack"], str(row["settings"])) for row in here))
        lines = []
        for attack, settings in keys:
            found = {
                row["method"]: row
                for row in here
                if (row["attack"], str(row["settings"])) == (attack, settings)
            }
            first = next(iter(found.values()))
            words = ", ".join(f"{k} {v}" for k, v in first["settings"].items())
            name = f"{attack} ({words})" if words else attack
            cost = sum(row["cpu_s"] for row in found.values()) / len(found)
            cells = [f"{100 * found[m]['after'] / found[m]['of']:.2f}" for m in methods]
            lines.append([f"*{name}*" if first["beyond"] else name, *cells, f"{cost:.1f}"])
        parts.append(f"\nLeft at eps {eps:g}, in %:\n")
        parts.append(markdown(["after", *methods, "CPU s"], lines))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

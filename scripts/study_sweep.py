"""A study made of sweeps: collect validation runs into a JSON file, and draw the study's table.

    python scripts/study_sweep.py collect STUDY.json FOLDER [FOLDER ...]
    python scripts/study_sweep.py draw STUDY.md
    python scripts/study_sweep.py compare RUN OTHER

FOLDER is searched for `record.json` of runs with `--validate`; a run on the test split is refused,
since a search must not see it. What is in STUDY.json already stays, so runs of several machines
and calls come together in one file; a run that is there twice must have the same figures. `draw`
writes the tables between the marks of STUDY.md from STUDY.json alone. `compare` prints the paired
differences of two runs of one track and seed, with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from robustdd_bench.board.pairing import outcomes
from robustdd_bench.errors import RobustDDError
from robustdd_bench.evaluation.comparison import compare
from robustdd_bench.files import read_json, write_json, write_text
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.runs.records import Record, read_record
from robustdd_bench.tables import markdown
from robustdd_bench.terminal import duration_text

BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"
LAST = 0.1
"""Share of a distillation, its end, over which the loss is averaged."""


def run_facts(record: Record, folder: Path) -> dict[str, Any]:
    """What a study keeps of a run, as JSON values."""
    assert record.aggregates is not None
    levels = [record.aggregates.clean, *(row.accuracy for row in record.aggregates.robust)]
    environment = record.costs.environment
    accelerators = environment.get("accelerators") or []
    return {
        "run_id": record.run_id,
        "method": record.method.name,
        "track": f"{record.track.name}@{record.track.version}",
        "seed": record.seed,
        "config": dict(record.method.config),
        "ladder": list(record.track.threat.ladder),
        "accuracy": [round(level.mean, 6) for level in levels],
        "std_students": [round(level.std or 0.0, 6) for level in levels],
        "students": record.track.students.count,
        "examples": levels[0].n_examples,
        "learning_rate": record.distilled.learning_rate if record.distilled else None,
        "loss": final_loss(folder / "metrics.jsonl"),
        "seconds": {stage.stage: stage.wall_s for stage in record.costs.stages},
        "device": accelerators[0] if record.device == "cuda" else environment.get("processor", "?"),
        "threads": record.threads,
        "torch": record.torch,
        "commit": record.costs.commit.sha if record.costs.commit else None,
        "results_sha256": record.results_sha256,
    }


def final_loss(path: Path) -> float | None:
    """The mean loss over the last tenth of a distillation; None if there is none."""
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [r["loss"] for r in rows if r["stage"].startswith("distill") and "loss" in r]
    return round(fmean(losses[-max(1, round(LAST * len(losses))) :]), 6) if losses else None


def collect(study: Path, folders: Sequence[Path]) -> None:
    """Add the runs under `folders` to the figures of a study.

    Raises:
        SystemExit: there is none, one has seen the test split, or one contradicts the file.
    """
    known = read_json(study)["runs"] if study.exists() else []
    runs = {row["run_id"]: row for row in known}
    paths = sorted(path for folder in folders for path in folder.rglob("record.json"))
    if not paths:
        sys.exit(f"error: no record.json in {', '.join(map(str, folders))}")
    for path in paths:
        record = read_record(path)
        if record.split != "validation":
            sys.exit(f"error: {path} was not run with --validate")
        if record.aggregates is None:
            continue
        facts = run_facts(record, path.parent)
        before = runs.setdefault(record.run_id, facts)
        if before["results_sha256"] != facts["results_sha256"]:
            sys.exit(f"error: {path}: {study} has other figures for run {record.run_id}")
    order = sorted(runs.values(), key=lambda row: (row["track"], _settings_key(row), row["seed"]))
    write_json(study, {"runs": order})


def _settings_key(row: dict[str, Any]) -> tuple[str, str]:
    return row["method"], json.dumps(row["config"], sort_keys=True)


def tables(results: dict[str, Any]) -> str:
    """Markdown: a table for each track, its methods one after the other."""
    parts = []
    for track in dict.fromkeys(row["track"] for row in results["runs"]):
        rows = [row for row in results["runs"] if row["track"] == track]
        varied = _varied(rows)
        steps = ["clean", *(eps_label(eps) for eps in rows[0]["ladder"])]
        headings = ["method", "settings", "seed", *steps, "loss", "rate", "time", "run"]
        cells = [[*_cells(row, varied), f"`{row['run_id']}`"] for row in rows]
        about = rows[0]
        parts.append(
            f"{track}: mean ± standard deviation over {about['students']} students in %, "
            f"{about['examples']} validation images; loss: mean of the last tenth of the "
            "distillation; rate: the learning rate that the set asks for.\n"
        )
        parts.append(markdown(headings, cells).rstrip())
        machines = sorted({_machine(row) for row in rows})
        parts.append(f"\nMachines: {'; '.join(machines)}.\n")
    return "\n".join(parts)


def _varied(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """For each method the settings in which its runs differ."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        configs = [row["config"] for row in rows if row["method"] == method]
        names = list(dict.fromkeys(name for config in configs for name in config))
        found[method] = [n for n in names if len({json.dumps(c.get(n)) for c in configs}) > 1]
    return found


def _cells(row: dict[str, Any], varied: dict[str, list[str]]) -> list[str]:
    settings = [f"{name} {_value(name, row['config'].get(name))}" for name in varied[row["method"]]]
    levels = zip(row["accuracy"], row["std_students"], strict=True)
    return [
        row["method"],
        ", ".join(settings),
        str(row["seed"]),
        *(f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in levels),
        "" if row["loss"] is None else f"{row['loss']:.3f}",
        "" if row["learning_rate"] is None else f"{row['learning_rate']:.3g}",
        duration_text(sum(row["seconds"].values())),
    ]


def _value(name: str, value: Any) -> str:
    return eps_label(value) if name == "eps" and value and value > 0 else str(value)


def _machine(row: dict[str, Any]) -> str:
    return f"{row['device']}, {row['threads']} CPU thread(s), torch {row['torch']}"


def differences(a: Record, b: Record) -> str:
    """Markdown: the accuracy of a run less that of another, at each level, in points.

    The same examples and students with the same seeds, resampled together; a distillation seed is
    one draw, and what other seeds would give is not in the interval.

    Raises:
        SystemExit: the runs cannot be paired.
    """
    judged = [(r.track_sha256, r.data and r.data.evaluation_sha256, r.seed) for r in (a, b)]
    seeds = [[student.seed for student in record.students] for record in (a, b)]
    if judged[0] != judged[1] or seeds[0] != seeds[1]:
        sys.exit("error: the runs differ in track, seed or examples and cannot be paired")
    levels = (0.0, *a.track.threat.ladder)
    found = compare(*(outcomes(record, levels)[:, None] for record in (a, b)))
    rows = [
        [
            "clean" if eps == 0 else eps_label(eps),
            f"{100 * one.difference:+.1f}",
            f"{100 * one.interval.low:+.1f} to {100 * one.interval.high:+.1f}",
        ]
        for eps, one in zip(levels, found, strict=True)
    ]
    return markdown(["level", "difference", "95 % interval"], rows)


def draw(study: Path) -> None:
    """Write the tables into the study.

    Raises:
        SystemExit: the marks are not there.
    """
    text = study.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"error: {study} lacks the marks {BEGIN} and {END}")
    made = tables(read_json(study.with_suffix(".json")))
    write_text(study, f"{head}{BEGIN}\n\n{made}\n{END}{tail}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect or draw; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="add runs to a study's figures")
    collecting.add_argument("study", type=Path, help="the JSON file")
    collecting.add_argument("folders", type=Path, nargs="+", help="folders of runs")
    drawing = commands.add_parser("draw", help="write a study's tables")
    drawing.add_argument("study", type=Path, help="the Markdown file")
    comparing = commands.add_parser("compare", help="paired differences of two runs")
    comparing.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folder of a run")
    options = parser.parse_args(arguments)
    try:
        if options.command == "compare":
            print(differences(*(read_record(run / "record.json") for run in options.runs)), end="")
        elif options.command == "collect":
            collect(options.study, options.folders)
        else:
            draw(options.study)
    except (RobustDDError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())

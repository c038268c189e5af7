"""A study made of sweeps: collect validation runs into a JSON file, and draw the study's tables.

    python scripts/study_sweep.py collect STUDY.json FOLDER [FOLDER ...] [--repeats]
    python scripts/study_sweep.py missing STUDY.json SWEEP.toml
    python scripts/study_sweep.py draw STUDY.md
    python scripts/study_sweep.py compare STUDY.json RUN OTHER
    python scripts/study_sweep.py compare FOLDER OTHER_FOLDER

`collect` searches FOLDER for `record.json` of runs with `--validate`; a run on the test split is
refused, since a search must not see it. It keeps each run's figures, and its outcomes by student
and example, from which intervals are computed again. What is in STUDY.json already stays, so runs
of several machines and calls come together in one file; a run that is there without its outcomes
gets them. A run that is there with other figures (another machine, another torch) is refused, or
with `--repeats` kept as a row of its own.

`missing` prints the runs of a sweep that STUDY.json has not, as options of `robustdd sweep`. A run
is the same if method, settings, track and seed are: machine and versions do not matter.

`draw` writes the tables between the marks of STUDY.md from STUDY.json alone: the runs, the choice
of its `rule` for each method if it has one, and the differences of its `comparisons`. Each of these
is computed from the outcomes that were kept; one whose outcomes were not kept shows what was once
stated, and says so.

`compare` prints the paired differences of two runs with their 95 % intervals, from a study's file
or from two folders. RUN may be several run ids with commas between them, one a distillation seed.
Where a run was repeated, runs of one machine are compared if there are such.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from robustdd_bench import plugins
from robustdd_bench.board.kept import differences, keep
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.evaluation.statistics.comparison import Difference
from robustdd_bench.files import read_json, write_json, write_text
from robustdd_bench.protocol.tracks import Track, eps_label
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.records.settings import differing_settings
from robustdd_bench.sweeps.choice import best_setting
from robustdd_bench.sweeps.plan import plan_sweep
from robustdd_bench.text.tables import markdown, marked
from robustdd_bench.text.terminal import duration_text

NOT_KEPT = "not kept: stated once, cannot be computed again"
COMPUTED = "kept: computed from them"
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
        "network": network_text(record.track),
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
        "outcomes": keep(record),
    }


def network_text(track: Track) -> str:
    """The network of a track, as in "convnet, depth 3, width 64"."""
    options = (f"{name} {value}" for name, value in sorted(track.network.options.items()))
    return ", ".join((track.network.name, *options))


def final_loss(path: Path) -> float | None:
    """The mean loss over the last tenth of a distillation; None if there is none."""
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [r["loss"] for r in rows if r["stage"].startswith("distill") and "loss" in r]
    return round(fmean(losses[-max(1, round(LAST * len(losses))) :]), 6) if losses else None


def collect(study: Path, folders: Sequence[Path], *, repeats: bool = False) -> None:
    """Add the runs under `folders` to the figures of a study.

    Args:
        study: the JSON file.
        folders: where the runs are.
        repeats: whether a run that is there with other figures is kept beside them.

    Raises:
        SystemExit: there is none, one has seen the test split, or one contradicts the file.
    """
    known = read_json(study) if study.exists() else {"runs": []}
    runs = {_identity(row): row for row in known["runs"]}
    ids = {row["run_id"] for row in known["runs"]}
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
        before = runs.get(_identity(facts))
        if before is None and record.run_id in ids and not repeats:
            sys.exit(
                f"error: {path}: {study} has other figures for run {record.run_id}; --repeats "
                "keeps both"
            )
        # What the file says stays; what it lacks is added.
        runs[_identity(facts)] = facts if before is None else facts | before
        ids.add(record.run_id)
    order = sorted(
        runs.values(),
        key=lambda row: (*_where(row), _settings_key(row), row["seed"], row["results_sha256"]),
    )
    write_json(study, known | {"runs": order})


def missing(study: Path, sweep: Path) -> list[str]:
    """The ids of a sweep's runs that a study has not.

    Args:
        study: the JSON file; none has no runs.
        sweep: the sweep's file.

    Raises:
        UsageError: the sweep is wrong.
    """
    runs = read_json(study)["runs"] if study.exists() else []
    known = {(_settings_key(row), *_where(row), row["seed"]) for row in runs}
    planned = plan_sweep(sweep, plugins.collect(plugins.get_plugin_manager()), compile="auto").runs
    found = []
    for run in planned:
        plan = run.plan
        facts = {"method": plan.method, "config": dict(plan.config)}
        here = {(plan.track.id, network_text(plan.track)), (plan.track.id, "")}
        if not any((_settings_key(facts), *where, plan.seed) in known for where in here):
            found.append(run.run_id)
    return found


def _identity(row: dict[str, Any]) -> tuple[str, str]:
    return row["run_id"], row["results_sha256"]


def _settings_key(row: dict[str, Any]) -> tuple[str, str]:
    return row["method"], json.dumps(row["config"], sort_keys=True)


def tables(results: dict[str, Any]) -> str:
    """Markdown: a table for each track, its methods one after the other."""
    parts = []
    for track, network in dict.fromkeys(map(_where, results["runs"])):
        rows = [row for row in results["runs"] if _where(row) == (track, network)]
        varied = _varied(rows)
        steps = ["clean", *(eps_label(eps) for eps in rows[0]["ladder"])]
        headings = ["method", "settings", "seed", *steps, "loss", "rate", "time", "run"]
        cells = [[*_cells(row, varied), f"`{row['run_id']}`"] for row in rows]
        if len({row["device"] for row in rows}) > 1:  # a run that was repeated elsewhere
            headings.append("machine")
            cells = [[*line, row["device"]] for line, row in zip(cells, rows, strict=True)]
        about = rows[0]
        where = f"{track} ({network})" if network else track
        parts.append(
            f"{where}: mean ± standard deviation over {about['students']} students in %, "
            f"{about['examples']} validation images; loss: mean of the last tenth of the "
            "distillation; rate: the learning rate that the set asks for.\n"
        )
        parts.append(markdown(headings, cells).rstrip())
        machines = sorted({_machine(row) for row in rows})
        parts.append(f"\nMachines: {'; '.join(machines)}.\n")
    if results.get("rule"):
        parts.append(choice_text(results))
    if results.get("comparisons"):
        parts.append(comparisons_text(results))
    return "\n".join(parts)


def chosen(results: dict[str, Any]) -> dict[tuple[str, str], tuple[dict[str, Any], int]]:
    """For each track and method the run that the study's `rule` chooses, and of how many."""
    rule, groups = results["rule"], dict[tuple[str, str], list[dict[str, Any]]]()
    for row in results["runs"]:
        groups.setdefault((row["track"], row["method"]), []).append(row)
    found = {}
    for key, rows in groups.items():
        place = 1 + rows[0]["ladder"].index(rule["eps"])
        clean, robust = ([row["accuracy"][at] for row in rows] for at in (0, place))
        found[key] = rows[best_setting(clean, robust, rule["clean_within"])], len(rows)
    return found


def choice_text(results: dict[str, Any]) -> str:
    """Markdown: what the rule chooses."""
    rule, lines = results["rule"], []
    for key, (row, count) in chosen(results).items():
        levels = (row["accuracy"][0], row["accuracy"][1 + row["ladder"].index(rule["eps"])])
        lines.append([*key, str(count), *(f"{100 * x:.1f}" for x in levels), f"`{row['run_id']}`"])
    headings = ["track", "method", "settings", "clean", eps_label(rule["eps"]), "chosen run"]
    return (
        f"Chosen for each method: the most robust setting at {eps_label(rule['eps'])} of those at "
        f"most {100 * rule['clean_within']:g} points below its best clean accuracy.\n\n"
        + markdown(headings, lines)
    )


def _where(row: dict[str, Any]) -> tuple[str, str]:
    """A run's track, and its network where the file says it: a search may try several."""
    return row["track"], row.get("network", "")


def _varied(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """For each method the settings in which its runs differ."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        configs = [row["config"] for row in rows if row["method"] == method]
        found[method] = differing_settings(configs)
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


def compared(results: dict[str, Any], a: str, b: str) -> list[tuple[float, Difference]]:
    """The paired differences of two runs of a study, from the outcomes that it keeps.

    Args:
        results: what the study's file holds.
        a: a run id, or several with commas between them, one a distillation seed.
        b: the same of the other.

    Raises:
        LookupError: the file has no outcomes of a run.
        UsageError: the runs cannot be paired.
    """
    rows = [row for row in results["runs"] if "outcomes" in row]
    sides = [[part.strip() for part in side.split(",")] for side in (a, b)]
    lacking = {run_id for side in sides for run_id in side} - {row["run_id"] for row in rows}
    if lacking:
        raise LookupError(f"the outcomes of {', '.join(sorted(lacking))} were not kept")
    machines = list(dict.fromkeys(map(_machine, rows)))
    choices = [[row for row in rows if _machine(row) == machine] for machine in machines]
    for chosen in (*choices, rows):
        kept = {row["run_id"]: row["outcomes"] for row in reversed(chosen)}
        if all(run_id in kept for side in sides for run_id in side):
            break
    return differences(*([kept[run_id] for run_id in side] for side in sides))


def differences_text(found: Sequence[tuple[float, Difference]]) -> str:
    """Markdown: differences in points at each level, with their intervals."""
    rows = [
        [
            _level(eps),
            f"{100 * one.difference:+.1f}",
            _interval(one.interval.low, one.interval.high),
        ]
        for eps, one in found
    ]
    return markdown(["level", "difference", "95 % interval"], rows)


def comparisons_text(results: dict[str, Any]) -> str:
    """Markdown: the comparisons that a study names, computed or as they were once stated.

    A comparison is `what` (in words), `a`, `b` (run ids), and by level what was stated of it when
    its outcomes were not kept: difference and interval in points.
    """
    rows = []
    for item in results["comparisons"]:
        try:
            found = compared(results, item["a"], item["b"])
        except LookupError:
            for level, (difference, low, high) in item["stated"].items():
                interval = f"{low:+.1f} to {high:+.1f}"
                rows.append([item["what"], level, f"{difference:+.1f}", interval, NOT_KEPT])
        else:
            for eps, one in found:
                shown = _interval(one.interval.low, one.interval.high)
                difference = f"{100 * one.difference:+.1f}"
                rows.append([item["what"], _level(eps), difference, shown, COMPUTED])
    headings = ["comparison", "level", "difference", "95 % interval", "outcomes"]
    return (
        "Paired differences in points, each interval over students and examples (over seeds as "
        "well where several are named); no interval is corrected for their number.\n\n"
        + markdown(headings, rows)
    )


def _level(eps: float) -> str:
    return "clean" if eps == 0 else eps_label(eps)


def _interval(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def draw(study: Path) -> None:
    """Write the tables into the study.

    Raises:
        UsageError: the marks are not there.
    """
    text = study.read_text(encoding="utf-8")
    made = tables(read_json(study.with_suffix(".json")))
    write_text(study, marked(text, "tables", made, str(study)))


def _compare(words: Sequence[str]) -> list[tuple[float, Difference]]:
    """The differences that the words of a call ask for."""
    if len(words) == 3:
        return compared(read_json(Path(words[0])), words[1], words[2])
    if len(words) == 2:
        return differences(*([keep(read_record(Path(run) / "record.json"))] for run in words))
    raise UsageError("compare takes STUDY.json and two runs, or two folders")


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect or draw; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="add runs to a study's figures")
    collecting.add_argument("study", type=Path, help="the JSON file")
    collecting.add_argument("folders", type=Path, nargs="+", help="folders of runs")
    collecting.add_argument("--repeats", action="store_true", help="keep other figures as well")
    lacking = commands.add_parser("missing", help="the runs of a sweep that a study has not")
    lacking.add_argument("study", type=Path, help="the JSON file")
    lacking.add_argument("sweep", type=Path, help="the sweep's file")
    drawing = commands.add_parser("draw", help="write a study's tables")
    drawing.add_argument("study", type=Path, help="the Markdown file")
    comparing = commands.add_parser("compare", help="paired differences of two runs")
    comparing.add_argument(
        "runs", nargs="+", metavar="RUN", help="STUDY.json and two ids, or folders"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "compare":
            print(differences_text(_compare(options.runs)), end="")
        elif options.command == "missing":
            words = [f"--only {run_id}" for run_id in missing(options.study, options.sweep)]
            print(" ".join(words))
        elif options.command == "collect":
            collect(options.study, options.folders, repeats=options.repeats)
        else:
            draw(options.study)
    except LookupError as error:
        parser.error(str(error))
    except (RobustDDError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`robustdd sweep`: many runs from one file."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustdd_bench.cli.run import say_eager
from robustdd_bench.cli.shared.arguments import witnesses_option
from robustdd_bench.cli.shared.execution import (
    check_execution,
    chosen_executor,
    computes_elsewhere,
    place_options,
)
from robustdd_bench.cli.shared.output import announce, json_option, print_json, print_table
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import RESULTS_FOLDER
from robustdd_bench.text.terminal import duration_text, one_line

if TYPE_CHECKING:
    from robustdd_bench.board.standings import Standing
    from robustdd_bench.sweeps.estimate import Estimate
    from robustdd_bench.sweeps.plan import Found, Sweep, SweepRun
    from robustdd_bench.sweeps.run import Outcome, SweepResult

NAMED_FAILURES = 3


@click.command("sweep")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--only",
    multiple=True,
    metavar="METHOD[/TRACK]|RUN_ID",
    help="Only these runs of the file; * stands for any text; repeatable.",
)
@place_options
@witnesses_option
@click.option("--retry-failed", is_flag=True, help="Run again what has failed before.")
@click.option("--no-wait", is_flag=True, help="Do not wait for runs that other processes are at.")
@click.option("--dry-run", is_flag=True, help="List the runs and what they may cost; do nothing.")
@click.option(
    "--board",
    "board_root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --dry-run: estimate from the records published there as well.",
)
@json_option
@pass_session
def sweep(session: Session, /, file: Path, **options: Any) -> None:
    """Run many runs: methods on tracks, with seeds and settings, as a file says.

    FILE is TOML: `methods`, `tracks` and `seeds`, and settings by method, of which a list is an
    axis; docs/sweeps.md has the rest. Runs that exist are not done again, an interrupted one
    resumes, and one that fails does not stop the others. Processes that sweep into the same
    folder share the work.
    """
    from robustdd_bench.sweeps.file import SweepFileError
    from robustdd_bench.sweeps.plan import plan_sweep

    options["limit"] = check_execution(session, options)
    if options["board_root"] is not None and not options["dry_run"]:
        raise UsageError("--board is for the estimate of --dry-run")
    quiet = options["dry_run"] and options["as_json"]
    try:
        planned = plan_sweep(
            file,
            session.registry,
            device=options["device"],
            threads=options["threads"],
            compile=options["compile"],
            elsewhere=computes_elsewhere(session, options),
            only=options["only"],
            loading=lambda: None if quiet else announce(file),
        )
    except SweepFileError as error:
        if len(error.problems) == 1:
            raise
        for problem in error.problems:
            print(one_line(f"{file}: {problem}"), file=sys.stderr)
        raise UsageError(f"{file}: {len(error.problems)} entries are wrong") from error
    device, threads = "cpu", options["threads"]
    for plan in [run.plan for run in planned.runs[:1]]:  # all have the same means
        device, threads = plan.device, plan.threads
        say_eager(options["compile"], device, plan.compile)
    if options["dry_run"]:
        _dry_run(session, planned, options)
        return
    from robustdd_bench.runs.progress.loggers import plugin_loggers
    from robustdd_bench.sweeps.displays import make_sweep_display
    from robustdd_bench.sweeps.run import run_sweep

    result = run_sweep(
        planned,
        session.registry,
        chosen_executor(session, options, device=device, threads=threads),
        out=options["out"],
        data_root=options["data_root"],
        display=make_sweep_display(
            planned, options["out"], publish=plugin_loggers(session.manager)
        ),
        download=options["download"],
        witnesses=options["witnesses"],
        retry_failed=options["retry_failed"],
        wait=not options["no_wait"],
        limit=options["limit"],
    )
    if options["as_json"]:
        print_json(result_json(result))
    else:
        print_summary(result)
    _say_what_is_missing(result)


def _say_what_is_missing(result: SweepResult) -> None:
    """End the call with exit code 1 if a run has failed; say which are other processes'.

    Raises:
        RunFailedError: a run has failed.
    """
    if result.note:
        print(one_line(result.note), file=sys.stderr)
    busy = result.having("busy")
    if busy:
        runs = "1 run is" if len(busy) == 1 else f"{len(busy)} runs are"
        print(f"{runs} going on in another process", file=sys.stderr)
    failed = result.having("failed")
    if failed:
        named = "; ".join(f"{one.run}: {one.folder}" for one in failed[:NAMED_FAILURES])
        more = len(failed) - NAMED_FAILURES
        raise RunFailedError(
            f"{len(failed)} of {len(result.outcomes)} runs failed: {named}"
            + (f"; and {more} more" if more > 0 else "")
        )


def groups(result: SweepResult) -> list[list[Outcome]]:
    """Outcomes that differ in their seeds alone, track by track, in the order of the file."""
    found: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in result.outcomes:
        found[outcome.run.group].append(outcome)
    tracks = list(dict.fromkeys(track for track, _, _ in found))
    return [found[key] for track in tracks for key in found if key[0] == track]


def standing(group: Sequence[Outcome]) -> Standing | None:
    """The runs of a group that have results; None if none has."""
    from robustdd_bench.board.standings import Standing

    records = tuple(outcome.record for outcome in group if outcome.record is not None)
    return Standing(records) if records else None


def print_summary(result: SweepResult) -> None:
    """Print a table for each track, with a row for each method and settings."""
    from robustdd_bench.board.standings import caption
    from robustdd_bench.protocol.tracks import eps_label

    by_track: dict[str, list[list[Outcome]]] = defaultdict(list)
    for group in groups(result):
        by_track[group[0].run.plan.track.id].append(group)
    for name, found in by_track.items():
        track = found[0][0].run.plan.track
        headline = track.threat.headline
        levels = [eps_label(eps) + (" *" if eps == headline else "") for eps in track.threat.ladder]
        figures = ["clean", *levels]
        columns = ["method", "settings", "images", "seeds", *figures]
        split = ", validation split" if result.sweep.split == "validation" else ""
        print_table(
            columns,
            [_summary_cells(group, len(figures)) for group in found],
            title=f"{name}{split}: {caption(track)}",
            right=columns[2:],
        )


def _summary_cells(group: Sequence[Outcome], figures: int) -> list[str]:
    """The row of a group; `seeds` tells how many of its runs have results."""
    from robustdd_bench.board.views.captions import deviation
    from robustdd_bench.text.tables import with_deviation

    found, run = standing(group), group[0].run
    if found is None:
        return [run.plan.method, run.settings, "", f"0/{len(group)}", *["-"] * figures]
    method, distilled = found.method, found.records[0].distilled
    if found.reference:
        method += " (reference)"
    if any(not flag.passed for record in found.records for flag in record.flags):
        method += " (flagged)"
    images = str(distilled.images) if distilled else "0"
    cells = [with_deviation(s.mean, deviation(s)) for s in (found.clean, *found.robust)]
    return [method, run.settings, images, f"{len(found.records)}/{len(group)}", *cells]


def result_json(result: SweepResult) -> dict[str, Any]:
    """Every run and every group of a sweep, as JSON values."""
    runs = []
    for outcome in result.outcomes:
        record = outcome.record
        aggregates = None if record is None else record.aggregates
        runs.append(
            _run_json(outcome.run, outcome.folder)
            | {
                "status": outcome.status,
                "reason": outcome.reason or None,
                "wall_s": outcome.wall_s,
                "clean": None if aggregates is None else aggregates.clean.mean,
                "headline": None if aggregates is None else aggregates.headline.mean,
                "failed_checks": []
                if record is None
                else sorted({flag.name for flag in record.flags if not flag.passed}),
            }
        )
    return {
        "sweep": result.sweep.name,
        "split": result.sweep.split,
        "runs": runs,
        "groups": [_group_json(group) for group in groups(result)],
    }


def _run_json(run: SweepRun, folder: Path) -> dict[str, Any]:
    plan = run.plan
    return {
        "run_id": run.run_id,
        "method": plan.method,
        "preset": plan.preset,
        "settings": dict(plan.overrides),
        "track": plan.track.id,
        "seed": plan.seed,
        "device": plan.device,
        "folder": str(folder),
        "command": plan.command(),
    }


def _group_json(group: Sequence[Outcome]) -> dict[str, Any]:
    found, plan = standing(group), group[0].run.plan
    return {
        "method": plan.method,
        "preset": plan.preset,
        "settings": dict(plan.overrides),
        "track": plan.track.id,
        "headline_eps": plan.track.threat.headline,
        "run_ids": [outcome.run.run_id for outcome in group],
        "seeds": [] if found is None else [record.seed for record in found.records],
        "clean": None if found is None else dataclasses.asdict(found.clean),
        "robust": []
        if found is None
        else [
            {"eps": eps, **dataclasses.asdict(spread)}
            for eps, spread in zip(plan.track.threat.ladder, found.robust, strict=True)
        ],
    }


def _dry_run(session: Session, planned: Sweep, options: dict[str, Any]) -> None:
    """Print every run, what there is of it, and what it may cost."""
    from robustdd_bench.sweeps.estimate import History, estimate

    out, board = options["out"], options["board_root"]
    results = [] if board is None else [board / RESULTS_FOLDER]
    if not all(folder.is_dir() for folder in results):
        raise UsageError(f"nothing is published under {board}; see `robustdd publish`")
    history = History([out, *results])
    rows: list[tuple[SweepRun, Found, bool, Estimate | None]] = []
    for run in planned.runs:
        state = run.found(out)
        todo = state in ("new", "started") or (state == "failed" and options["retry_failed"])
        cost = estimate(run.plan, history, out, session.registry) if todo else None
        rows.append((run, state, todo, cost))
    known = [cost for *_, cost in rows if cost is not None]
    total_s = sum(cost.wall_s for cost in known)
    count = sum(todo for _, _, todo, _ in rows)
    if options["as_json"]:
        listed = [
            _run_json(run, run.plan.folder(out))
            | {
                "found": state,
                "todo": todo,
                "estimate": None if cost is None else dataclasses.asdict(cost),
            }
            for run, state, todo, cost in rows
        ]
        content = {"sweep": planned.name, "split": planned.split, "runs": listed}
        totals = {"todo": count, "estimated": len(known), "estimate_s": total_s}
        print_json(content | totals)
        return
    title = f"{planned.name}: {len(rows)} runs, {count} to do"
    title += ", validation split" if planned.split == "validation" else ""
    if count:
        title += f"; about {duration_text(total_s)} for {len(known)} of them" if known else ""
        unknown = count - len(known)
        title += f"; {unknown} with nothing to estimate from" if unknown else ""
    columns = ("run id", "found", "method", "track", "seed", "settings", "estimate", "from")
    cells = [
        (
            run.run_id,
            state,
            run.plan.method,
            run.plan.track.name,
            run.plan.seed,
            run.settings,
            duration_text(cost.wall_s) if cost else "unknown" if todo else "",
            cost or "",
        )
        for run, state, todo, cost in rows
    ]
    print_table(
        columns,
        cells,
        title=one_line(title),
        right=("seed", "estimate"),
        whole=("run id", "found", "method", "track"),
        minor=("from",),
    )

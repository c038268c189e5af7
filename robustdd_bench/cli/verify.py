"""`robustdd verify`: hold a record against an evaluation of its set, or against its witnesses."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustdd_bench.cli.shared.arguments import RegisteredName, data_root_option, must_exist
from robustdd_bench.cli.shared.execution import (
    check_execution,
    chosen_executor,
    device_option,
    executor_options,
)
from robustdd_bench.cli.shared.output import announce, json_option, print_json, print_table
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.text.terminal import one_line

if TYPE_CHECKING:
    from robustdd_bench.verification.fresh import FreshVerdict
    from robustdd_bench.verification.reevaluate import Reevaluation
    from robustdd_bench.verification.setup import VerifyOptions
    from robustdd_bench.verification.witnesses import Verdict


@click.command("verify")
@click.argument("source", type=click.Path(path_type=Path), metavar="RECORD")
@click.option(
    "--students",
    type=int,
    metavar="K",
    help="Only the first K students; all by default.",
)
@click.option(
    "--examples",
    type=int,
    metavar="N",
    help="Only the first N test images; all by default.",
)
@click.option(
    "--witnesses",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The record's witnesses; by default those beside it, if there are any.",
)
@click.option(
    "--witnesses-only",
    is_flag=True,
    help="Run no attack: check the witnesses, in one forward pass.",
)
@click.option(
    "--fresh-students",
    "fresh",
    type=int,
    metavar="N",
    help="Judge the set with N students of seeds drawn now instead of the record's.",
)
@click.option(
    "--fresh-seed",
    type=int,
    metavar="SEED",
    help="With --fresh-students: the seed to repeat an earlier such verification with.",
)
@click.option(
    "--track",
    type=RegisteredName("tracks"),
    help="The protocol, a track or the path of a .toml file; by default the installed track of "
    "the record's name.",
)
@device_option(
    None, "auto, cpu, cuda or cuda:N; by default the record's, or cpu where there is no GPU."
)
@click.option(
    "--threads",
    type=int,
    help="CPU threads (0: torch's choice); by default the record's, which the result depends on.",
)
@data_root_option
@executor_options
@json_option
@pass_session
def verify(
    session: Session,
    /,
    source: Path,
    students: int | None,
    examples: int | None,
    witnesses: Path | None,
    witnesses_only: bool,
    fresh: int | None,
    fresh_seed: int | None,
    track: str | None,
    device: str | None,
    threads: int | None,
    data_root: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate a record's distilled set again and say whether the record agrees.

    RECORD is the folder of a run, published or not, or the path of its record.json. Students are
    trained on its set again, attacked by the track's whole suite and checked; the method is not
    run. A claim above what is found is refused, one below it is accepted where witnesses prove it.
    With --fresh-students the seeds are others, so that figures need not agree: a record is refused
    if its students are better than fresh ones by more than the luck of training.

    Exit code 1 says that the record disagrees.
    """
    if fresh_seed is not None and fresh is None:
        raise UsageError("--fresh-seed goes with --fresh-students")
    if fresh is not None and (witnesses_only or witnesses is not None):
        raise UsageError(
            "witnesses belong to the record's own students; leave them out with --fresh-students"
        )
    record = source / RECORD_FILE if source.is_dir() else source
    must_exist(record)
    check_execution(session, options)
    if threads is not None:
        from robustdd_bench.records.means import check_threads

        check_threads(threads)
    if track is not None:
        from robustdd_bench.protocol.tracks import load_track

        load_track(track, session.registry)
    announce(source)
    from robustdd_bench.verification.setup import VerifyOptions

    verified = VerifyOptions(
        data_root=data_root,
        track=track,
        device=device,
        threads=threads,
        students=students,
        examples=examples,
        executor=lambda plan: chosen_executor(
            session, {**options, "device": device}, device=plan.device, threads=plan.threads
        ),
    )
    if fresh is not None:
        _judge_fresh(session, source, verified, fresh, fresh_seed, as_json)
    elif witnesses_only:
        _hold_witnesses(session, source, verified, witnesses, as_json)
    else:
        _reevaluate(session, source, verified, witnesses, as_json)


def _reevaluate(
    session: Session, source: Path, options: VerifyOptions, witnesses: Path | None, as_json: bool
) -> None:
    from robustdd_bench.runs.progress.displays import make_reporter
    from robustdd_bench.verification.reevaluate import reevaluate

    found = reevaluate(
        source, session.registry, options, reporter=make_reporter, witnesses=witnesses
    )
    if as_json:
        print_json(
            dataclasses.asdict(found)
            | {
                "same_to_the_bit": found.same_to_the_bit,
                "reasons": found.reasons,
                "agrees": found.agrees,
            }
        )
    else:
        _print_levels(source, found)
    _say_notes(found.notes)
    same = sum(found.same_weights)
    if found.same_to_the_bit:
        print("same to the bit: students' weights and every outcome", file=sys.stderr)
    else:
        print(
            f"the weights of {same} of {found.students} students are the record's to the bit; "
            f"{found.other_outcomes:,} of {found.outcomes:,} raw outcomes differ",
            file=sys.stderr,
        )
    if not found.agrees:
        raise RunFailedError(f"the record disagrees: {'; '.join(found.reasons)}")
    print("the record agrees", file=sys.stderr)


def _print_levels(source: Path, found: Reevaluation) -> None:
    witnessed = any(level.left is not None for level in found.levels)
    headings = [
        "eps",
        "claimed",
        "found",
        *(["left by witnesses"] if witnessed else []),
        "claimed - found",
        "95 % interval",
        "verdict",
    ]
    rows = [
        (
            level.name,
            _percent(level.claimed),
            _percent(level.found),
            *(["" if level.left is None else _percent(level.left)] if witnessed else []),
            f"{100 * level.difference:+.2f}",
            f"{100 * level.interval.low:+.2f} to {100 * level.interval.high:+.2f}",
            level.word,
        )
        for level in found.levels
    ]
    title = (
        f"{source}: {found.method} on {found.track}, seed {found.seed}; accuracy in %, "
        f"{found.students} of {found.of_students} students, {found.examples} of "
        f"{found.of_examples} examples"
    )
    print_table(headings, rows, title=one_line(title), right=headings[1:-1])


def _hold_witnesses(
    session: Session, source: Path, options: VerifyOptions, witnesses: Path | None, as_json: bool
) -> None:
    from robustdd_bench.runs.progress.displays import make_reporter
    from robustdd_bench.verification.witnesses import verify_witnesses

    verdict = verify_witnesses(
        source, session.registry, options, reporter=make_reporter, witnesses=witnesses
    )
    if as_json:
        print_json(dataclasses.asdict(verdict) | {"agrees": verdict.agrees})
    else:
        _print_verdict(source, verdict)
    _say_notes(verdict.notes)
    if not verdict.same_weights:
        print(
            "the students trained here are not the record's to the bit (another machine or torch)",
            file=sys.stderr,
        )
    if verdict.faults:
        raise RunFailedError(f"the record disagrees: {'; '.join(verdict.faults)}")
    if not verdict.agrees:
        raise RunFailedError("the record claims more or less than its witnesses prove")
    print("the record agrees with its witnesses", file=sys.stderr)


def _print_verdict(source: Path, verdict: Verdict) -> None:
    from robustdd_bench.protocol.tracks import eps_label

    headings = ("eps", "claimed", "left by witnesses", "unproven")
    rows = [
        (
            eps_label(level.eps) if level.eps else "clean",
            _percent(level.claimed),
            _percent(level.left),
            level.unproven,
        )
        for level in verdict.levels
    ]
    title = f"{source}: accuracy in %, {verdict.witnesses} witnesses"
    print_table(headings, rows, title=one_line(title), right=headings[1:])


def _judge_fresh(
    session: Session,
    source: Path,
    options: VerifyOptions,
    count: int,
    seed: int | None,
    as_json: bool,
) -> None:
    from robustdd_bench.runs.progress.displays import make_reporter
    from robustdd_bench.verification.fresh import verify_fresh

    found = verify_fresh(
        source, session.registry, options, count=count, seed=seed, reporter=make_reporter
    )
    if as_json:
        levels = [
            dataclasses.asdict(level) | {"difference": level.difference} for level in found.levels
        ]
        print_json(
            dataclasses.asdict(found)
            | {"levels": levels, "reasons": found.reasons, "agrees": found.agrees}
        )
    else:
        _print_fresh(source, found)
    _say_notes([*found.notes, *found.failed_checks])
    print(
        f"fresh seed {found.fresh_seed}; --fresh-seed {found.fresh_seed} repeats this",
        file=sys.stderr,
    )
    if not found.agrees:
        raise RunFailedError(f"the record disagrees: {'; '.join(found.reasons)}")
    print("the record agrees with fresh students", file=sys.stderr)


def _print_fresh(source: Path, found: FreshVerdict) -> None:
    headings = ("eps", "claimed", "fresh", "claimed - fresh", "fresh range", "p higher", "verdict")
    rows = [
        (
            level.name,
            _percent(level.claimed),
            _percent(level.fresh),
            f"{100 * level.difference:+.2f}",
            f"{_percent(min(level.fresh_values))} to {_percent(max(level.fresh_values))}",
            f"{level.p_higher:.3f}",
            level.word,
        )
        for level in found.levels
    ]
    title = (
        f"{source}: {found.method} on {found.track}, seed {found.seed}; accuracy in %, "
        f"{found.students} students against {found.fresh_students} fresh ones, "
        f"{found.examples} examples"
    )
    print_table(headings, rows, title=one_line(title), right=headings[1:-1])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)

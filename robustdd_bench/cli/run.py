"""`robustdd run` and `robustdd evaluate`: from data, or from a set, to a record."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustdd_bench.cli.shared.afterwards import afterwards
from robustdd_bench.cli.shared.arguments import (
    OneOf,
    RegisteredName,
    must_exist,
    witnesses_option,
)
from robustdd_bench.cli.shared.execution import (
    check_execution,
    chosen_executor,
    computes_elsewhere,
    place_options,
)
from robustdd_bench.cli.shared.hub import download, hub_address
from robustdd_bench.cli.shared.importing import import_for_track, import_options, take_choices
from robustdd_bench.cli.shared.output import (
    announce,
    json_option,
    print_json,
    print_table,
    print_tables,
)
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import (
    RECORD_FILE,
    ROBUSTNESS_PICTURE,
    SET_FILE,
    SET_PICTURE,
    STORE_FOLDER,
)
from robustdd_bench.imports.formats import FORMATS
from robustdd_bench.text.terminal import duration_text, one_line, rate_text

if TYPE_CHECKING:
    from robustdd_bench.records.plan import Plan
    from robustdd_bench.records.record import Record
    from robustdd_bench.runs.pipeline import Finished

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--track",
        type=RegisteredName("tracks"),
        default="digits-ipc10",
        show_default=True,
        help="Protocol: a registered track, a .toml file, or a run whose record holds it.",
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Base of every seed of the run."
    ),
    place_options,
    click.option(
        "--validate", is_flag=True, help="Judge on a split of the training data (tuning)."
    ),
    witnesses_option,
    click.option("--fresh", is_flag=True, help="Forget what this run has computed; start anew."),
    click.option("--dry-run", is_flag=True, help="Print the resolved plan and do nothing."),
    json_option,
)


def run_options(function: Function) -> Function:
    """Add the options that `run` and `evaluate` share."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command("run")
@click.option(
    "--method",
    type=RegisteredName("distillers"),
    required=True,
    help="See `robustdd list methods`.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a hyper-parameter of the method (see `robustdd show method NAME`); repeatable.",
)
@click.option(
    "--preset", default="default", show_default=True, help="Named hyper-parameters of the method."
)
@run_options
@pass_session
def run(
    session: Session, /, method: str, assignments: Sequence[str], preset: str, **options: Any
) -> None:
    """Distil a dataset, train students on the set, attack them and write a record.

    An interrupted run resumes: repeat the command.
    """
    options["limit"] = check_execution(session, options)
    from robustdd_bench.records.plan import make_plan

    plan = make_plan(
        session.registry,
        method=method,
        track=options["track"],
        assignments=assignments,
        preset=preset,
        seed=options["seed"],
        device=options["device"],
        threads=options["threads"],
        validate=options["validate"],
        compile=options["compile"],
        elsewhere=computes_elsewhere(session, options),
        loading=lambda: _announce(f"{method} on {_place(options)}", options),
    )
    _execute(session, plan, options)


@click.command("evaluate")
@click.argument("source", type=click.Path(path_type=Path), metavar="SET")
@click.option(
    "--format",
    "file_format",
    type=OneOf("format", ("robustdd", *FORMATS)),
    default="robustdd",
    show_default=True,
    help=f"Format of SET: robustdd, {', '.join(FORMATS)}.",
)
@import_options
@run_options
@click.pass_context
@pass_session
def evaluate(
    session: Session,
    /,
    context: click.Context,
    source: Path,
    file_format: str,
    **options: Any,
) -> None:
    """Train students on a distilled set that is there already, and attack them.

    SET is a `distilled.safetensors` written by `robustdd run`. It may also be the folder of a run,
    published or not: the run is then done again from its set on, with its method, seed and split,
    under the version of its track that is installed (or under --track), and with compiled kernels
    if it had them (or as --compile says).

    hub:ORG/NAME@REVISION is a set that `robustdd push` uploaded; the newest without @REVISION. With
    --format it is what others publish: see docs/importing.md.
    """
    options["limit"] = check_execution(session, options)
    address = hub_address(source, file_format)
    choices = take_choices(file_format, options)
    again = choices is None and address is None and source.is_dir()
    if again:
        _refuse_given(context)
    if choices is None and address is None:
        must_exist(source / RECORD_FILE if again else source)
    from robustdd_bench.records.plan import check_call, make_plan

    if not again or _given(context, "track"):
        check_call(
            session.registry,
            track=options["track"],
            seed=options["seed"],
            device=options["device"],
            threads=options["threads"],
        )
    _announce(source if again else f"{source} on {_place(options)}", options)
    if again:
        _evaluate_run(session, context, source, options)
        return
    if address is not None:
        source = download(address)
    from robustdd_bench.imports.external_set import store_imported, store_set

    store = options["out"] / STORE_FOLDER
    if choices is None:
        try:
            digest = store_set(source, store)
        except UsageError as error:
            raise UsageError(
                f"{error}; where another code wrote it, name its layout with --format "
                f"({', '.join(FORMATS)}): docs/importing.md"
            ) from error
    else:
        imported = import_for_track(source, choices, session.registry, options)
        digest = store_imported(imported, store)
    plan = make_plan(
        session.registry,
        method="given",
        track=options["track"],
        assignments=[f'sha256="{digest}"'],
        seed=options["seed"],
        device=options["device"],
        threads=options["threads"],
        validate=options["validate"],
        compile=options["compile"],
        elsewhere=computes_elsewhere(session, options),
    )
    _execute(session, plan, options)


def _evaluate_run(
    session: Session, context: click.Context, source: Path, options: dict[str, Any]
) -> None:
    """Do a run again from its distilled set on."""
    from robustdd_bench.runs.reuse import plan_again

    plan, record = plan_again(
        session.registry,
        source,
        track=options["track"] if _given(context, "track") else None,
        device=options["device"],
        threads=options["threads"],
        compile=options["compile"] if _given(context, "compile") else None,
    )
    _execute(session, plan, options, (source, record))


def _refuse_given(context: click.Context) -> None:
    """Refuse options of what a run has settled."""
    for name, what in (("seed", "seed"), ("validate", "split")):
        if _given(context, name):
            raise UsageError(f"--{name}: the {what} is the run's; leave the option out")


def _given(context: click.Context, name: str) -> bool:
    """Whether an option was in the call."""
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _place(options: dict[str, Any]) -> str:
    return f"{options['track']}, seed {options['seed']}"


def _announce(what: object, options: dict[str, Any]) -> None:
    """The first line on stderr; a plan as JSON needs none."""
    if not (options["dry_run"] and options["as_json"]):
        announce(what)


def _execute(
    session: Session,
    plan: Plan,
    options: dict[str, Any],
    source: tuple[Path, Record] | None = None,
) -> None:
    say_eager(options["compile"], plan.device, plan.compile)
    if options["dry_run"]:
        _print_plan(session, plan, options)
        return
    from robustdd_bench.api import run_plan
    from robustdd_bench.runs.execution.limits import TimeLimitError

    try:
        finished = run_plan(
            plan,
            session.manager,
            session.registry,
            executor=chosen_executor(session, options, device=plan.device, threads=plan.threads),
            out=options["out"],
            data_root=options["data_root"],
            download=options["download"],
            fresh=options["fresh"],
            witnesses=options["witnesses"],
            source=source,
            limit=options["limit"],
        )
    except TimeLimitError as limit:
        if options["as_json"]:
            left = {"run_id": plan.run_id(), "status": "unfinished", "left": str(limit)}
            print_json(left | {"folder": str(plan.folder(options["out"]))})
        print(limit, file=sys.stderr)
        return
    if options["as_json"]:
        from robustdd_bench.entrance import summary

        print_json(summary(finished.record) | {"folder": str(finished.folder)})
        return
    _print_finished(finished)


def say_eager(choice: str, device: str, compiled: bool) -> None:
    """Say why runs compute without compiled kernels, where the user left it to the machine."""
    if choice == "auto" and not compiled:
        import torch

        from robustdd_bench.toolkit.fast.compile import availability

        found = availability(torch.device(device))
        if not found.active:
            print(one_line(f"steps run eagerly: {found.reason}"), file=sys.stderr)


def _print_plan(session: Session, plan: Plan, options: dict[str, Any]) -> None:
    folder = plan.folder(options["out"])
    if options["as_json"]:
        ids = {"run_id": plan.run_id(), "identity": plan.identity(), "folder": str(folder)}
        print_json(plan.to_dict() | ids)
        return
    from robustdd_bench.sweeps.estimate import History, estimate

    cost = estimate(plan, History([options["out"]]), options["out"], session.registry)
    about = "unknown" if cost is None else f"about {duration_text(cost.wall_s)} ({cost})"
    facts = [
        ("run id", plan.run_id()),
        (
            "identity",
            f"{plan.identity()} (the same with other versions, device, threads or kernels)",
        ),
        ("folder", folder),
        ("method", f"{plan.method} (plugin {plan.plugin}, {plan.distribution} {plan.version})"),
        *((f"  {key}", value) for key, value in plan.config.items()),
        ("track", f"{plan.track.id}: {plan.track.summary}"),
        ("split", plan.split),
        ("students", plan.track.students.count),
        *((f"attack {attack.name}", _settings(attack.config)) for attack in plan.attacks),
        ("seed", plan.seed),
        ("device", f"{plan.device}, {plan.threads} CPU threads, torch {plan.torch}"),
        ("compiled kernels", "on" if plan.compile else "off"),
        ("time", f"{about}, cell after cell"),
        ("command", plan.command()),
    ]
    print_table(("", "plan"), facts)


def _settings(config: Mapping[str, Any]) -> str:
    """Settings in a line for people; those that are not set are left out."""
    from robustdd_bench.records.settings import setting_text

    said = [setting_text(name, value) for name, value in config.items() if value is not None]
    return ", ".join(said) or "no settings"


def print_result(record: Record) -> None:
    """Print a run's table: clean accuracy and accuracy at each eps."""
    from robustdd_bench.board.views.tables import run_table

    print_tables([run_table(record)], "table")


def _print_finished(finished: Finished) -> None:
    record, folder = finished.record, finished.folder
    print_result(record)
    for name in (RECORD_FILE, SET_FILE, SET_PICTURE, ROBUSTNESS_PICTURE):
        print(folder / name)
    for stage in record.costs.stages:
        rate = rate_text(stage.items_per_s, stage.unit)
        print(
            f"{stage.stage:9} {stage.wall_s:8.1f} s  {rate:>24}  peak "
            f"{stage.peak_bytes / 2**20:,.0f} MiB",
            file=sys.stderr,
        )
    if finished.reused:
        print("this run had ended before; --fresh repeats it", file=sys.stderr)
    for flag in record.flags:
        if not flag.passed:
            text = f"check failed on student {flag.student}: {flag.name}: {flag.evidence}"
            print(one_line(f"warning: {text}"), file=sys.stderr)
    _say_copies(record)
    for line in afterwards(record, folder):
        print(one_line(line, 2000), file=sys.stderr)


def _say_copies(record: Record) -> None:
    """What the images of a set have in common with the data, where that matters."""
    found = record.overlap
    if found is None:
        return
    judged = "test images" if record.split == "test" else "images that it is judged on"
    if found.exact_test:
        print(
            f"warning: {found.exact_test} of {found.images} images are exact copies of {judged}: "
            "this run does not rank and cannot be published",
            file=sys.stderr,
        )
    if found.near_test:
        print(
            f"warning: {found.near_test} of {found.images} images are near copies of {judged} "
            f"(correlation up to {found.closest_test:.3f}); a board marks them",
            file=sys.stderr,
        )
    if found.exact_train == found.images:
        print("all images of the set are training images", file=sys.stderr)

"""The command `robustdd`: finds the command, runs it, and turns every end into an exit code.

Exit codes: 0 done; 1 the run failed; 2 the call was wrong; 130 interrupted; 141 the reader of a
pipe went away; 143 ended by SIGTERM, which is an interruption like Ctrl-C. Whatever goes wrong is
one line on stderr; ROBUSTDD_DEBUG=1 adds the trace.

Nothing heavy is imported here: a command's module is imported when the command is called.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from robustdd_bench.cli.shared.group import LazyCommand, LazyGroup
from robustdd_bench.cli.shared.output import complain
from robustdd_bench.cli.shared.session import Session
from robustdd_bench.errors import RobustDDError
from robustdd_bench.guard import plain_text, told
from robustdd_bench.plugins import PluginWarning

DEBUG_VARIABLE = "ROBUSTDD_DEBUG"
COMPLETE_VARIABLE = "_ROBUSTDD_COMPLETE"

# Name -> where it is, and the line that `--help` shows: the first sentence of its docstring.
COMMANDS = {
    "run": LazyCommand(
        "robustdd_bench.cli.run:run",
        "Distil a dataset, train students on the set, attack them and write a record.",
    ),
    "evaluate": LazyCommand(
        "robustdd_bench.cli.run:evaluate",
        "Train students on a distilled set that is there already, and attack them.",
    ),
    "sweep": LazyCommand(
        "robustdd_bench.cli.sweep:sweep",
        "Run many runs: methods on tracks, with seeds and settings, as a file says.",
    ),
    "worker": LazyCommand(
        "robustdd_bench.cli.worker:worker",
        "Compute cells of runs that another process plans, on this machine or another one.",
    ),
    "convert": LazyCommand(
        "robustdd_bench.cli.sets:convert",
        "Write a distilled set of another format as one of ours.",
    ),
    "export": LazyCommand(
        "robustdd_bench.cli.sets:export_command",
        "Write a distilled set for other codes, with a card, its record and what to cite.",
    ),
    "push": LazyCommand(
        "robustdd_bench.cli.sets:push_command",
        "Upload an exported set to the Hugging Face hub, as a dataset.",
    ),
    "list": LazyCommand(
        "robustdd_bench.cli.listing:list_command",
        "List methods, attacks, tracks and the rest; or the runs in a folder.",
    ),
    "show": LazyCommand(
        "robustdd_bench.cli.show:show", "Show one method, attack, track or run, or stored experts."
    ),
    "report": LazyCommand(
        "robustdd_bench.cli.report:report",
        "Write a report of one or several runs: settings, tables, plots, images over iterations.",
    ),
    "table": LazyCommand(
        "robustdd_bench.cli.papers:table",
        "Make a table of runs: a row for each method and settings, seeds grouped.",
    ),
    "plot": LazyCommand(
        "robustdd_bench.cli.papers:plot",
        "Draw accuracy over eps of runs: a line for each method and settings, a plot for each "
        "track.",
    ),
    "picture": LazyCommand(
        "robustdd_bench.cli.papers:picture",
        "Draw the images of a distilled set: a row a class, with its name.",
    ),
    "compare": LazyCommand(
        "robustdd_bench.cli.papers:compare",
        "Compare the runs in folder A with those in B: A minus B, and A minus every further B.",
    ),
    "transfer": LazyCommand(
        "robustdd_bench.cli.transfer:transfer",
        "Try adversarial examples made on the students of each run on those of every other run.",
    ),
    "clean": LazyCommand(
        "robustdd_bench.cli.clean:clean",
        "Free space: leftover temporary files, stored experts, work folders and failed runs.",
    ),
    "plugins": LazyCommand(
        "robustdd_bench.cli.plugins:plugins_command", "List the plugins and what they register."
    ),
    "doctor": LazyCommand(
        "robustdd_bench.cli.doctor:doctor", "Check this machine and installation."
    ),
    "publish": LazyCommand(
        "robustdd_bench.cli.board:publish_command", "Copy a run to the board and rebuild it."
    ),
    "verify": LazyCommand(
        "robustdd_bench.cli.verify:verify",
        "Evaluate a record's distilled set again and say whether the record agrees.",
    ),
    "board": LazyCommand(
        "robustdd_bench.cli.board:board", "Build, check, show and compare published runs."
    ),
    "check-plugin": LazyCommand(
        "robustdd_bench.cli.check:check_plugin",
        "Check an installed method, attack or executor against what the benchmark relies on.",
    ),
    "new-plugin": LazyCommand(
        "robustdd_bench.cli.check:new_plugin",
        "Write the package of a new method, attack or executor that passes check-plugin.",
    ),
}

cli = LazyGroup(
    COMMANDS,
    "robustdd",
    help="Benchmark robust dataset distillation: distil, train naturally, attack, record, rank.",
    epilog="Exit codes: 0 done; 1 the run failed; 2 the call was wrong; 130 Ctrl-C; 143 SIGTERM.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from robustdd_bench.registry.commit import full_version

        print(f"robustdd {full_version()}")
        context.exit()


cli = click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version, and the commit where it is known, and exit.",
)(cli)


def main(args: Sequence[str] | None = None) -> int:
    """Run `robustdd` with these arguments (those of the process by default).

    Returns:
        The exit code.
    """
    session = Session()
    if sys.stdout is None:  # the shell closed it: `robustdd list >&-`
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        # A locale that cannot write a character must not be the end of a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", PluginWarning)
        warnings.showwarning = _one_line_warnings(warnings.showwarning)
        with _terminable() as terminated:
            try:
                code = _dispatch(list(sys.argv[1:] if args is None else args), session)
                sys.stdout.flush()
            except BaseException as error:
                code = _end(error, session)
                return 143 if code == 130 and terminated() else code
            return code


@contextlib.contextmanager
def _terminable() -> Iterator[Callable[[], bool]]:
    """SIGTERM interrupts as Ctrl-C does, so that what is kept is told; yields whether it came.

    Whoever started this may have had it ignored, and then it is. Ctrl-C is the one signal whose
    exceptions are never a plugin's fault (`robustdd_bench.guard`), so SIGTERM becomes it.
    """
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield lambda: False
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _dispatch(args: list[str], session: Session) -> int:
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        warnings.simplefilter("ignore")  # a warning would land in the line the user is typing
        return shell_complete(cli, {"obj": session}, "robustdd", COMPLETE_VARIABLE, instruction)
    try:
        with cli.make_context("robustdd", args, obj=session) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _one_line_warnings(otherwise: Callable[..., Any]) -> Callable[..., None]:
    """A `warnings.showwarning` that shows what concerns plugins as one line, once."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, PluginWarning):
            otherwise(message, category, *place, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            complain("warning", message)

    return show


def _end(error: BaseException, session: Session) -> int:
    """Say in one line how the call ended; return the exit code."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 141  # as of a process that dies of SIGPIPE
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        print(error.format_message(), file=sys.stderr)
        return 2
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, (KeyboardInterrupt, click.Abort, EOFError)):
        # Whoever knows what is kept and how to go on raises KeyboardInterrupt(text).
        print(error if str(error) else "interrupted", file=sys.stderr)
        return 130
    if isinstance(error, RobustDDError):
        complain("error", plain_text(error))
        return error.exit_code
    if isinstance(error, click.UsageError):
        complain("error", _usage_line(error))
        return error.exit_code
    if isinstance(error, click.ClickException):
        complain("error", error.format_message())
        return error.exit_code
    if isinstance(error, OSError):
        _silence_stdout()  # a full disk under stdout would be reported once more at exit
    plugin = session.blame(error)
    where = f"plugin {plugin!r}: " if plugin else ""
    hint = "" if debug else f" (set {DEBUG_VARIABLE}=1 for the trace)"
    complain("error", f"{where}{told(error)}{hint}")
    return 1


def _usage_line(error: click.UsageError) -> str:
    """Click's complaint as one line, with a suggestion for a misspelt option."""
    import difflib

    path = error.ctx.command_path if error.ctx is not None else "robustdd"
    if isinstance(error, click.NoSuchOption):
        known = [
            name
            for param in (error.ctx.command.params if error.ctx is not None else ())
            for name in (*param.opts, *param.secondary_opts)
            if name.startswith("--")
        ]
        close = difflib.get_close_matches(error.option_name, [*known, "--help"], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"see {path} --help"
        return f"unknown option {error.option_name}; {hint}"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; see {path} --help"


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the flush at exit does not complain again."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
    except (OSError, ValueError, AttributeError):
        return

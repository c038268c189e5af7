"""`robustdd table`, `plot`, `picture` and `compare`: any runs, for a paper."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustdd_bench.cli.shared.arguments import OneOf, eps_value
from robustdd_bench.cli.shared.output import (
    announce,
    format_option,
    one_line,
    print_json,
    print_tables,
)
from robustdd_bench.errors import UsageError

if TYPE_CHECKING:
    from robustdd_bench.papers.selection import Panel

FORMATS = ("table", "json", "csv", "md", "latex")
SPREADS = ("std", "interval", "none")
Function = TypeVar("Function", bound=Callable[..., Any])

runs_argument = click.argument(
    "runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True
)

figure_option = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Its name ends in .pdf, .svg or .png.",
)


def _words(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    words = tuple(word.strip() for word in value.split(","))
    if not all(words):
        raise UsageError(f"{parameter.opts[0]} takes words with commas between them, not {value!r}")
    return words


def _levels(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    words = _words(context, parameter, value)
    if value is None:
        return None
    found = [0.0 if word == "clean" else eps_value(word, parameter.opts[0]) for word in words]
    return tuple(dict.fromkeys(found))


def _width(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 1 <= value <= 40:  # NaN is refused as well
        raise UsageError(f"--width takes 1 to 40 inches, not {value:g}")
    return value


def shown_options(function: Function) -> Function:
    """Add `--methods` and `--eps`."""
    for option in (
        click.option(
            "--eps",
            "levels",
            callback=_levels,
            metavar="E,E",
            help="Only these eps, as 2/255 or .1, and the word clean for clean accuracy.",
        ),
        click.option(
            "--methods",
            callback=_words,
            metavar="NAME,NAME",
            help="Only these methods, in this order; by default all, the most robust first.",
        ),
    ):
        function = option(function)
    return function


def spread_option(what: str) -> Callable[[Function], Function]:
    """Add `--spread`.

    Args:
        what: what it is shown as.
    """
    return click.option(
        "--spread",
        type=OneOf("spread", SPREADS),
        default="std",
        show_default=True,
        metavar=f"[{'|'.join(SPREADS)}]",
        help=f"{what}: the standard deviation over seeds (of one seed: over students), a 95 % "
        "bootstrap interval over seeds, students and examples, or nothing.",
    )


def _counted(paths: Sequence[Path]) -> str:
    return "1 path" if len(paths) == 1 else f"{len(paths)} paths"


def _note(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)


def _panels(
    runs: Sequence[Path], methods: Sequence[str], levels: tuple[float, ...] | None
) -> list[Panel]:
    from robustdd_bench.papers.selection import panels, read_runs

    return panels(read_runs(runs, _note), methods=methods, levels=levels)


@click.command("table")
@runs_argument
@shown_options
@spread_option("What stands beside a mean")
@click.option(
    "--short-caption", is_flag=True, help="Leave the suite of attacks out of captions and notes."
)
@format_option(*FORMATS)
def table(
    runs: Sequence[Path],
    methods: tuple[str, ...],
    levels: tuple[float, ...] | None,
    spread: Any,
    short_caption: bool,
    form: str,
) -> None:
    """Make a table of runs: a row for each method and settings, seeds grouped.

    RUN is the folder of a run, published or not, or a folder with runs below it: `runs`,
    `runs/digits-ipc10`, `leaderboard/results/digits-ipc10/mat`. Every seed that
    was run counts. A method with several settings has a row for each, named by what differs.

    Several tracks make several tables; md and latex put them side by side into one. csv has
    everything in numbers, accuracies in [0,1], a line for each method and track. latex needs the
    package booktabs. Nothing is ranked: `robustdd compare` says whether two methods differ.
    """
    announce(_counted(runs))
    from robustdd_bench.papers.tables import joint_table, panel_tables

    panels = _panels(runs, methods, levels)
    if form in ("md", "latex"):
        print_tables([joint_table(panels, spread, short=short_caption)], form)
        return
    tables = panel_tables(panels, spread, short=short_caption)
    if form == "json":
        print_json([row for one in tables for row in one.facts()])
    else:
        print_tables(tables, form)


@click.command("plot")
@runs_argument
@figure_option
@shown_options
@spread_option("What the bars are")
@click.option(
    "--width",
    type=float,
    callback=_width,
    metavar="INCHES",
    help="Of the figure; by default 3.4 for each plot in a row.",
)
def plot(
    runs: Sequence[Path],
    out: Path,
    methods: tuple[str, ...],
    levels: tuple[float, ...] | None,
    spread: Any,
    width: float | None,
) -> None:
    """Draw accuracy over eps of runs: a line for each method and settings, a plot for each track.

    RUN is what `robustdd table` takes. Names stand beside the lines, in the order of the headline
    eps. Colour-blind people can tell the colours apart; marks and dashes do it in print. Bars are
    standard deviations or intervals. Lines of references are broken, with open marks.
    """
    from robustdd_bench.papers.plots import check_suffix, save_plot

    check_suffix(out)
    announce(_counted(runs))
    save_plot(out, _panels(runs, methods, levels), spread, width=width)
    print(out)


@click.command("picture")
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|SET")
@figure_option
@click.option(
    "--scale",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    metavar="N",
    help="Pixels a side that each pixel of the set becomes.",
)
@click.option(
    "--images",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="Images of each class, at most.",
)
@click.option("--title", metavar="TEXT", help="Instead of method, track and seed; empty for none.")
def picture(source: Path, out: Path, scale: int, images: int, title: str | None) -> None:
    """Draw the images of a distilled set: a row a class, with its name.

    RUN is the folder of a run, SET a file such as distilled.safetensors. Pixels outside [0,1] are
    clipped, for the picture only; mosaics are shown as they are stored. In a PNG every pixel of the
    set is a square of --scale x --scale pixels.
    """
    announce(source)
    from robustdd_bench.papers.pictures import read_set, save_picture

    distilled, record = read_set(source)
    save_picture(out, distilled, record, scale=scale, images=images, title=title)
    print(out)


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("others", type=click.Path(path_type=Path), metavar="B...", nargs=-1, required=True)
@format_option(*FORMATS)
def compare(a: Path, others: Sequence[Path], form: str) -> None:
    """Compare the runs in folder A with those in B: A minus B, and A minus every further B.

    Each is the folder of a run, or a folder with the runs of one method and settings below it, such
    as its seeds. Runs are paired by seed, student and image, so both must be judged by one version
    of one track, and share a seed. For clean accuracy and each eps: the mean paired difference, its
    bootstrap interval over seeds, students and examples, and McNemar's test of the networks on the
    examples. Intervals are not corrected for how many eps or pairs you look at.

    `robustdd board compare` takes names of published methods.
    """
    announce(_counted([a, *others]))
    from robustdd_bench.papers.comparing import compare_runs

    found = compare_runs([a, *others], _note)
    if form == "json":
        print_json([one.content() for one in found])
    else:
        print_tables([one.table() for one in found], form)

"""Accuracy over eps of any runs, as a figure for a paper: PDF, SVG or PNG.

Colours are those of Okabe and Ito (2008), which people with any kind of colour blindness tell
apart; beyond eight entries, and in print without colours, marks and dashes do. Names stand
beside the lines, in the order of the headline eps.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdd_bench.board.views.captions import deviation
from robustdd_bench.errors import UsageError
from robustdd_bench.files import write_bytes
from robustdd_bench.papers.selection import Panel, PanelLine
from robustdd_bench.papers.tables import Spreads, intervals_of
from robustdd_bench.protocol.tracks import eps_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".pdf", ".svg", ".png")
# Okabe and Ito 2008, without yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>Ph"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))
REFERENCE = (0, (5, 2, 1, 2))
POINTS = 8
"""Size of the letters; a paper's captions have about as much."""
STYLE: Any = {
    "font.size": POINTS,
    "axes.titlesize": POINTS,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # letters that editors of a journal can take out again
    "svg.fonttype": "none",
    "svg.hashsalt": "robustdd-bench",
}
MOST_COLUMNS = 3
_LETTER_INCH, _LINE_INCH = 0.062, 0.14


def save_plot(
    path: Path, panels: Sequence[Panel], spread: Spreads = "std", *, width: float | None = None
) -> None:
    """Write the figure.

    Args:
        path: its suffix says the format.
        panels: the runs, grouped; a plot each.
        spread: what the bars are.
        width: of the figure in inches; by default 3.4 for each plot in a row.

    Raises:
        UsageError: the suffix is none of `SUFFIXES`.
        RunFailedError: the file cannot be written.
    """
    check_suffix(path)
    content = plot_bytes(panels, path.suffix.lower()[1:], spread, width=width)
    write_bytes(path, content)


def check_suffix(path: Path) -> None:
    """Refuse a file of another format.

    Raises:
        UsageError: the suffix is none of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path}: a plot's name ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )


def plot_bytes(
    panels: Sequence[Panel], form: str, spread: Spreads = "std", *, width: float | None = None
) -> bytes:
    """The figure as "pdf", "svg" or "png"; the same bytes whenever it is drawn.

    Args:
        panels: the runs, grouped; a plot each.
        form: the format.
        spread: what the bars are.
        width: of the figure in inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        most = max(len(panel.entries) for panel in panels)
        height = max(2.4, 0.8 + _LINE_INCH * most)
        figure = Figure(
            figsize=(width or 3.4 * columns, height * rows), dpi=300, layout="constrained"
        )
        FigureCanvasAgg(figure)
        looks = _looks(panels)
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            _draw(axes, panel, spread, looks)
            if number % columns == 0:
                axes.set_ylabel("accuracy, %")
        buffer = io.BytesIO()
        kept = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
        figure.savefig(buffer, format=form, metadata=kept[form])
    return buffer.getvalue()


def _looks(panels: Sequence[Panel]) -> dict[str, int]:
    """A number for each name, the same in all plots of a figure."""
    names = dict.fromkeys(entry.name for panel in panels for entry in panel.entries)
    return {name: number for number, name in enumerate(names)}


def _draw(axes: Axes, panel: Panel, spread: Spreads, looks: dict[str, int]) -> None:
    levels, headline = panel.levels, panel.track.threat.headline
    at = levels.index(headline) if headline in levels else len(levels) - 1
    highest, named = 0.0, []
    for entry in panel.entries:
        values = [100 * value.mean for value in panel.spreads(entry)]
        style = _style(entry, looks[entry.name])
        bars = _bars(panel, entry, spread)
        axes.errorbar(
            levels,
            values,
            yerr=bars,
            elinewidth=0.6,
            capsize=0 if spread == "none" else 1.5,
            capthick=0.6,
            **style,
        )
        highest = max(highest, *(a + b for a, b in zip(values, bars[1], strict=True)))
        named.append((values[at], entry.name, style))
    if headline in levels:
        axes.axvline(headline, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
    axes.set_xticks(levels, [eps_label(level) if level else "clean" for level in levels])
    axes.tick_params(axis="x", labelrotation=40 if _crowded(axes, levels) else 0)
    top = min(100, 10 * math.ceil((highest + 1) / 10))
    axes.set_ylim(0, top)
    axes.set_xlabel(f"ε, {'ℓ∞' if panel.track.threat.norm == 'Linf' else 'ℓ2'}")
    axes.set_title(panel.title)
    axes.grid(alpha=0.2, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _name_lines(axes, top, named)


def _style(entry: PanelLine, look: int) -> dict[str, Any]:
    """How the line of an entry is drawn."""
    colour, reference = COLOURS[look % len(COLOURS)], entry.standing.reference
    return {
        "color": colour,
        "marker": MARKERS[look % len(MARKERS)],
        "markersize": 3,
        "markerfacecolor": "white" if reference else colour,
        "linewidth": 1,
        "linestyle": REFERENCE if reference else DASHES[look // len(COLOURS) % len(DASHES)],
    }


def _crowded(axes: Axes, levels: Sequence[float]) -> bool:
    """Whether neighbouring eps lie so close that their labels would touch."""
    span = (levels[-1] - levels[0]) or 1.0
    gaps = [(b - a) / span for a, b in itertools.pairwise(levels)]
    inches = axes.get_position().width * axes.figure.get_figwidth()  # type: ignore[union-attr]
    return bool(gaps) and min(gaps) * inches < 7 * _LETTER_INCH


def _bars(panel: Panel, entry: PanelLine, spread: Spreads) -> list[list[float]]:
    """How far the bars reach below and above each mean, in points."""
    spreads = panel.spreads(entry)
    if spread == "none":
        return [[0.0] * len(spreads)] * 2
    if spread == "std":
        return [[100 * (deviation(value) or 0.0) for value in spreads]] * 2
    intervals = intervals_of(panel, entry)
    pairs = list(zip(spreads, intervals, strict=True))
    return [
        [100 * max(0.0, value.mean - one.low) for value, one in pairs],
        [100 * max(0.0, one.high - value.mean) for value, one in pairs],
    ]


def _name_lines(axes: Axes, top: float, named: list[tuple[float, str, dict[str, Any]]]) -> None:
    """Write each name beside the plot, as high as its line is at the headline eps.

    Names that would touch are moved apart, so a piece of the line stands before each.
    """
    height = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    least = min(_LINE_INCH / height, 1 / max(1, len(named)))
    ordered = sorted(named, key=lambda one: one[0])
    places = apart([value / top for value, _, _ in ordered], least, 0.0, 1.0)
    for (_, name, style), place in zip(ordered, places, strict=True):
        sample = {"transform": axes.transAxes, "clip_on": False, **style}
        axes.plot([1.03, 1.12], [place, place], **{**sample, "marker": ""})
        axes.plot([1.075], [place], **sample)
        axes.annotate(
            name,
            xy=(1.14, place),
            xycoords="axes fraction",
            color=style["color"],
            va="center",
            annotation_clip=False,
        )


def apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places near those that are wanted, with at least `least` between neighbours.

    Args:
        wanted: rising.
        least: the distance; (n - 1) of them must fit between `low` and `high`.
        low: no place lies below it.
        high: no place lies above it.

    Returns:
        Rising, as near to `wanted` in the sum of squares as the distance allows: neighbours that
        would touch are centred on the mean of what they want, as pools of adjacent violators are.
    """
    groups: list[tuple[float, int]] = []  # where its first place lies, how many there are

    def limited(start: float, count: int) -> float:
        return min(max(start, low), high - least * (count - 1))

    for number, value in enumerate(wanted):
        members = [value]
        start = limited(value, 1)
        while groups and groups[-1][0] + least * groups[-1][1] > start + 1e-9:
            _, count = groups.pop()
            members = [*wanted[number - len(members) + 1 - count : number - len(members) + 1],
                       *members]  # fmt: skip
            mean = sum(v - least * k for k, v in enumerate(members)) / len(members)
            start = limited(mean, len(members))
        groups.append((start, len(members)))
    return [start + least * k for start, count in groups for k in range(count)]

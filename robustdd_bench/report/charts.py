"""The plots of a report: what is drawn where, for the template to write as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustdd_bench.drawing.axes import (
    BOTTOM,
    DASHES,
    HEIGHT,
    MARKERS,
    RIGHT,
    STYLES,
    TOP,
    WIDTH,
    Axes,
    Scale,
    Tick,
    eps_axis,
    linear,
    percent_ticks,
    spaced,
)
from robustdd_bench.drawing.figures import attack_label, attack_points
from robustdd_bench.protocol.suite import worst_case_over
from robustdd_bench.protocol.tracks import Track
from robustdd_bench.records.parts import AggregateInfo, Aggregates
from robustdd_bench.report.series import Series, thinned

METRICS_LEFT = 66.0
"""Numbers of any size need more room than percent."""
LOG_DECADES = 2.0
"""From so many decades on a positive quantity has a logarithmic axis."""
NAMED_LINES = 8
MOST_LINES = 40
FEW_POINTS = 30

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot, in pieces where values are missing."""

    label: str
    look: int
    pieces: tuple[tuple[Point, ...], ...]
    spans: tuple[tuple[float, float, float, float], ...] = ()
    """Lines x1, y1, x2, y2: the 95 % intervals."""
    marked: bool = False
    """Whether each point has a marker."""
    plain: bool = False
    """One of many, without a name: all of them look the same."""
    broken: bool = False
    """Drawn with dashes, whatever its number."""

    @property
    def css(self) -> str:
        """Classes of the stylesheet."""
        if self.plain:
            return "many s0"
        dash = 2 if self.broken else self.look // STYLES % DASHES
        return f"s{self.look % STYLES} d{dash}"

    @property
    def marker(self) -> str:
        """Shape of its points."""
        return MARKERS[self.look % len(MARKERS)]

    @property
    def points(self) -> list[Point]:
        """All points."""
        return [point for piece in self.pieces for point in piece]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart(Axes):
    """A plot: axes, lines, and what is said of them."""

    title: str
    description: str
    x_name: str
    y_name: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def legend(self) -> tuple[Line, ...]:
        """The lines that are told apart."""
        named = tuple(line for line in self.lines if not line.plain)
        return named if len(named) > 1 or any(line.label for line in named) else ()

    @property
    def legend_columns(self) -> int:
        """How many names stand beside one another below a plot that is a file of its own."""
        return 2 if all(len(line.label) <= 24 for line in self.legend) else 1

    @property
    def legend_height(self) -> float:
        """The room that the names take there."""
        rows = -(-len(self.legend) // self.legend_columns)
        return 20.0 * rows + 6 if rows else 0.0


AccuracyLines = Callable[[Scale, Scale], list[Line]]


def _accuracy_chart(title: str, description: str, track: Track, draw: AccuracyLines) -> Chart:
    """Accuracy over eps; `draw` makes the lines from the scales across and up."""
    x, x_ticks = eps_axis(track.threat.ladder, track.threat.headline)
    bottom = HEIGHT - BOTTOM
    return Chart(
        title=title,
        description=f"{description}; the figures are in the table.",
        x_name=f"{'L∞' if track.threat.norm == 'Linf' else 'L2'} ε (* headline)",
        y_name="accuracy, %",
        x_ticks=x_ticks,
        y_ticks=percent_ticks(0.0, 1.0, bottom, TOP),
        lines=tuple(draw(x, linear(0.0, 1.0, bottom, TOP))),
    )


def _worst(x: Scale, y: Scale, found: Aggregates, label: str, look: int) -> Line:
    """Clean accuracy and the worst case at each eps, with 95 % intervals."""
    levels: list[tuple[float, AggregateInfo]] = [(0.0, found.clean)]
    levels += [(row.eps, row.accuracy) for row in found.robust]
    points = tuple((x(eps), y(value.mean)) for eps, value in levels)
    spans = tuple((x(eps), y(value.low), x(eps), y(value.high)) for eps, value in levels)
    return Line(label, look, (points,), spans, marked=True)


def _over(track: Track) -> str:
    return worst_case_over(track.attacks, track.threat.headline).replace(" eps", " ε")


def accuracy_chart(title: str, track: Track, found: Aggregates) -> Chart:
    """Accuracy over eps of one run: the worst case over all, and each attack of the suite."""

    def draw(x: Scale, y: Scale) -> list[Line]:
        lines = [_worst(x, y, found, "worst case", 0)]
        for look, spec in enumerate(track.attacks, start=1):
            points = tuple((x(eps), y(mean)) for eps, mean in attack_points(spec, found))
            single = len(points) < 2
            lines.append(Line(attack_label(spec), look, (points,), marked=single, broken=True))
        return lines

    about = f"The {_over(track)}, with 95 % intervals, and each attack"
    return _accuracy_chart(title, about, track, draw)


def comparison_chart(track: Track, runs: Sequence[tuple[str, Aggregates]]) -> Chart:
    """Accuracy over eps of several runs on one track, by their labels."""

    def draw(x: Scale, y: Scale) -> list[Line]:
        return [_worst(x, y, found, label, look) for look, (label, found) in enumerate(runs)]

    about = f"One line a run, the {_over(track)}, with 95 % intervals"
    return _accuracy_chart(f"{track.id}: accuracy over ε", about, track, draw)


def metric_charts(series: Sequence[Series]) -> list[Chart]:
    """A plot for each metric of each stage, in the order in which they were reported."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for one in series:
        groups.setdefault((one.head, one.name), []).append(one)
    return [_metric_chart(head, name, found) for (head, name), found in groups.items()]


def _metric_chart(head: str, name: str, found: Sequence[Series]) -> Chart:
    shown = [(one, thinned(one)) for one in found[:MOST_LINES]]
    values = [v for _, points in shown for _, v in points if not math.isnan(v)]
    steps = [step for _, points in shown for step, _ in points]
    right = WIDTH - RIGHT
    y, y_ticks, logarithmic = _value_axis(values)
    low, high = _widened(min(steps), max(steps))
    x = linear(low, high, METRICS_LEFT + 6, right - 6)
    x_ticks = spaced([Tick(x(v), f"{v:,.0f}") for v in round_values(low, high, 6) if v == round(v)])
    plain = len(shown) > NAMED_LINES
    # Values of the pipeline itself are one a student: a line between students says nothing.
    apart = head == "students" and all(not one.place for one in found)
    lines = []
    for look, (one, points) in enumerate(shown):
        pieces = _pieces([(x(step), v if math.isnan(v) else y(v)) for step, v in points])
        if apart:
            pieces = tuple((point,) for piece in pieces for point in piece)
        few = (apart or len(points) <= FEW_POINTS) and not plain
        label = "" if len(shown) == 1 else one.place or "all"
        lines.append(Line(label, look, pieces, marked=few, plain=plain))
    notes = _notes(found, shown, logarithmic, plain)
    place = found[0].place if len(found) == 1 else ""
    title = f"{name}, {head or 'run'}{f' ({place})' if place else ''}"
    return Chart(
        title=title,
        description=f"{len(found)} line{'s' * (len(found) > 1)} over steps.",
        x_name="student" if apart else "step",
        y_name=name,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=tuple(lines),
        notes=notes,
        left=METRICS_LEFT,
    )


def _notes(
    found: Sequence[Series],
    shown: Sequence[tuple[Series, list[Point]]],
    logarithmic: bool,
    plain: bool,
) -> tuple[str, ...]:
    notes = []
    if logarithmic:
        notes.append("logarithmic axis")
    if len(found) > len(shown):
        notes.append(f"the first {len(shown)} of {len(found)}")
    elif plain:
        notes.append(f"{len(found)} lines: {found[0].place} to {found[-1].place}")
    missing = sum(math.isnan(value) for one in found for value in one.values)
    if missing:
        notes.append(f"{missing} value{'s' * (missing > 1)} not finite: gaps")
    longest = max(len(one.values) for one in found)
    if any(len(points) < len(one.values) for one, points in shown):
        notes.append(f"{longest:,} steps, thinned: least and greatest of each stretch stay")
    return tuple(notes)


def _pieces(points: Sequence[Point]) -> tuple[tuple[Point, ...], ...]:
    """The points between missing ones."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if math.isnan(point[1]):
            pieces.append([])
        else:
            pieces[-1].append(point)
    return tuple(tuple(piece) for piece in pieces if piece)


def _widened(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _value_axis(values: Sequence[float]) -> tuple[Scale, tuple[Tick, ...], bool]:
    """Scale and ticks of values of any size, and whether the axis is logarithmic."""
    bottom = HEIGHT - BOTTOM
    low, high = _widened(min(values), max(values)) if values else (0.0, 1.0)
    if values and low > 0 and math.log10(high) - math.log10(low) >= LOG_DECADES:
        first, last = math.log10(low), math.log10(high)
        scale = linear(first, last, bottom - 4, TOP + 4)
        step = max(1, math.ceil((last - first) / 7))
        decades = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1, step)
        ticks = tuple(Tick(scale(d), number_label(10.0**d)) for d in decades)
        return lambda value: scale(math.log10(value)), ticks, True
    # Values next to the ends of the floating-point range: a difference may overflow.
    size = max(abs(low), abs(high), 1e-300)
    scale = linear(low / size, high / size, bottom - 4, TOP + 4)
    found = round_values(low / size, high / size, 6, size)
    return (
        lambda value: scale(value / size),
        tuple(Tick(scale(v / size), number_label(v)) for v in found),
        False,
    )


def round_values(low: float, high: float, most: int, size: float = 1.0) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) in [low, high] * size, at most about `most`.

    Args:
        low: lower end.
        high: upper end, larger than `low`.
        most: how many there may be.
        size: unit of both ends.
    """
    rough = (high - low) / most * size
    if not 1e-300 < rough < 1e300:
        return [low * size, high * size]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low * size / step - 1e-9), math.floor(high * size / step + 1e-9)
    if not 0 <= last - first <= 2 * most:  # the ends are closer than their own precision
        return [low * size]
    return [i * step for i in range(first, last + 1)]


def number_label(value: float) -> str:
    """A number in few characters."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        return f"{value:.3g}"
    return f"{mantissa}e{int(exponent)}"

"""The page's plots: what is drawn where, for the template to write as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustdd_bench.board.naming import shortened
from robustdd_bench.board.schema import RowContent, TrackContent
from robustdd_bench.drawing.axes import (
    BOTTOM,
    DASHES,
    HEIGHT,
    LEFT,
    LETTER,
    LINE,
    MARKERS,
    RIGHT,
    STYLES,
    TOP,
    WIDTH,
    Axes,
    eps_axis,
    linear,
    percent_ticks,
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A row in a plot: how it looks, and where it is."""

    row: RowContent
    look: int
    points: tuple[tuple[float, float], ...]
    spans: tuple[tuple[float, float, float, float], ...]
    """Lines x1, y1, x2, y2: the 95 % intervals."""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"
    led: bool = False
    """Whether a thin line leads from the point to its label."""

    @property
    def label(self) -> str:
        """What stands beside its point: a long name without its last parts; the table has them."""
        return shortened(self.row.name)

    @property
    def style(self) -> int:
        """Number of its colour."""
        return self.look % STYLES

    @property
    def dash(self) -> int:
        """Number of its dashes."""
        return self.look // STYLES % DASHES

    @property
    def marker(self) -> str:
        """Shape of its points."""
        return MARKERS[self.look % len(MARKERS)]

    @property
    def path(self) -> str:
        """The polyline through all points."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot(Axes):
    """A plot's axes and rows."""

    marks: tuple[Mark, ...]


def looks(tracks: Sequence[TrackContent]) -> dict[str, int]:
    """A number for each method of a board, by name."""
    names = sorted({row.name for track in tracks for row in track.rows})
    return {name: index for index, name in enumerate(names)}


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A range in twentieths of [0,1] that holds all values with some room."""
    low = max(0.0, math.floor((min(values) - 0.01) * 20) / 20)
    high = min(1.0, math.ceil((max(values) + 0.01) * 20) / 20)
    return low, max(high, low + 0.1)


def scatter(track: TrackContent, look: Mapping[str, int]) -> Plot:
    """Clean accuracy (across) against robust accuracy at the headline eps (up)."""
    rows = track.rows
    x_low, x_high = _range([v for row in rows for v in (row.clean.low, row.clean.high)])
    y_low, y_high = _range([v for row in rows for v in (row.headline.low, row.headline.high)])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    x, y = linear(x_low, x_high, LEFT, right), linear(y_low, y_high, bottom, TOP)
    marks = []
    for row in rows:
        at = x(row.clean.mean), y(row.headline.mean)
        spans = (
            (x(row.clean.low), at[1], x(row.clean.high), at[1]),
            (at[0], y(row.headline.low), at[0], y(row.headline.high)),
        )
        marks.append(Mark(row, look[row.name], (at,), spans))
    return Plot(
        x_ticks=percent_ticks(x_low, x_high, LEFT, right),
        y_ticks=percent_ticks(y_low, y_high, bottom, TOP),
        marks=tuple(_labelled(marks)),
    )


def _labelled(marks: Sequence[Mark]) -> list[Mark]:
    """Give each point a label that covers neither a point nor another label, best rows first."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for mark in marks for x, y in mark.points]
    found = []
    for mark in marks:
        (px, py) = mark.points[0]
        wide = LETTER * len(mark.label)
        best: tuple[float, float, float, str, bool] | None = None
        for distance in (9.0, 18.0, 30.0, 44.0, 60.0, 80.0):
            for dx, dy in (
                (1, 0), (-1, 0), (0.7, -0.7), (0.7, 0.7),
                (-0.7, -0.7), (-0.7, 0.7), (0, -1), (0, 1),
            ):  # fmt: skip
                anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
                lx, ly = px + dx * distance, py + dy * distance + 4
                start = lx - (0 if dx > 0 else wide if dx < 0 else wide / 2)
                box = (start, ly - LINE + 3, start + wide, ly + 3)
                inside = box[0] >= LEFT + 2 and box[2] <= WIDTH - 2
                inside = inside and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM - 2
                if not inside:
                    continue
                covered = sum(_overlap(box, other) for other in taken) + distance / 1000
                if best is None or covered < best[0]:
                    best = (covered, lx, ly, anchor, distance > 9.0)
            if best is not None and best[0] < 0.1:
                break
        if best is None:
            best = (0.0, px + 9, py + 4, "start", False)
        _, lx, ly, anchor, led = best
        start = lx - (0 if anchor == "start" else wide if anchor == "end" else wide / 2)
        taken.append((start, ly - LINE + 3, start + wide, ly + 3))
        found.append(Mark(mark.row, mark.look, mark.points, mark.spans, lx, ly, anchor, led))
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def curves(track: TrackContent, look: Mapping[str, int]) -> Plot:
    """Accuracy (up) over eps (across), from clean to the end of the ladder."""
    levels = (0.0, *track.ladder)
    bottom = HEIGHT - BOTTOM
    x, ticks = eps_axis(track.ladder, track.headline_eps)
    y = linear(0.0, 1.0, bottom, TOP)
    marks = []
    for row in track.rows:
        spreads = (row.clean, *row.robust)
        points = tuple((x(eps), y(s.mean)) for eps, s in zip(levels, spreads, strict=True))
        spans = tuple(
            (x(eps), y(s.low), x(eps), y(s.high)) for eps, s in zip(levels, spreads, strict=True)
        )
        marks.append(Mark(row, look[row.name], points, spans))
    return Plot(x_ticks=ticks, y_ticks=percent_ticks(0.0, 1.0, bottom, TOP), marks=tuple(marks))

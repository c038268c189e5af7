"""Axes and geometry of the plots in pages: of the board and of reports.

Coordinates are in the units of the SVG's viewBox. Colours, dashes and fonts are the stylesheet's,
so that a plot follows the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustdd_bench.protocol.tracks import eps_label

WIDTH, HEIGHT = 460.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 14.0, 46.0
STYLES, DASHES = 8, 3
"""Colours and dashes of the stylesheet."""
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
LETTER, LINE = 7.6, 14.0
"""About the size of a label's letters."""

Scale = Callable[[float], float]
"""From a value to its place."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """Ticks and the rectangle between the axes; a plot adds what is drawn in it."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """The scale on which `low` lies at `start` and `high` at `end`."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def percent_ticks(low: float, high: float, start: float, end: float) -> tuple[Tick, ...]:
    """Ticks of an accuracy axis; `low` and `high` lie in [0,1]."""
    step = 0.1 if high - low > 0.31 else 0.05 if high - low > 0.11 else 0.02
    at = linear(low, high, start, end)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(Tick(at(i * step), f"{100 * i * step:.0f}") for i in range(first, last + 1))


def eps_axis(ladder: Sequence[float], headline: float) -> tuple[Scale, tuple[Tick, ...]]:
    """The scale from clean (0) to the end of a ladder, and its ticks; the headline has a star."""
    at = linear(0.0, ladder[-1], LEFT + 8, WIDTH - RIGHT - 8)
    ticks = [Tick(at(0.0), "clean")]
    ticks += [Tick(at(eps), eps_label(eps) + ("*" if eps == headline else "")) for eps in ladder]
    return at, spaced(ticks)


def spaced(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """The ticks, with no text where it would run into the one before."""
    found: list[Tick] = []
    end = -1e9
    for tick in ticks:
        half = LETTER * len(tick.text) / 2
        free = tick.at - half > end + 4
        found.append(tick if free else Tick(tick.at, ""))
        end = tick.at + half if free else end
    return tuple(found)

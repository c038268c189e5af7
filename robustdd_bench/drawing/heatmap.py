"""A square of shares as a picture: colours that everybody can tell apart, and the figures in them.

The colours are cividis, which rises evenly in lightness and looks nearly the same with and without
red-green blindness (Nunez, Anderton, Renslow 2018).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

COLOURS = "cividis"
_CELL_INCH, _MOST_INCH = 0.95, 16.0
_DARK = 0.55
"""Shares below it are written in white."""


def heatmap_png(
    shares: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    labels: Sequence[str],
    below: Sequence[float],
    *,
    title: str,
    row_title: str,
    column_title: str,
    below_title: str,
    scale_title: str,
) -> bytes:
    """The picture as PNG.

    Args:
        shares: (n,n) in [0,1], row by row.
        texts: what stands in each cell.
        labels: of the n rows and columns.
        below: (n,) in [0,1], a row apart.
        title: above the picture.
        row_title: what the rows are.
        column_title: what the columns are.
        below_title: what the row apart is.
        scale_title: what the colours are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n = len(labels)
    side = min(_CELL_INCH * n, _MOST_INCH)
    longest = max(map(len, labels))
    figure = Figure(
        figsize=(max(side + 1.9 + 0.085 * longest, 4.6), side + 2.0),
        dpi=150,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    gap = n + 0.15  # the row apart begins here
    drawn = axes.imshow(
        [[100 * one for one in row] for row in shares], cmap=COLOURS, vmin=0.0, vmax=100.0
    )
    axes.imshow(
        [[100 * one for one in below]],
        cmap=COLOURS,
        vmin=0.0,
        vmax=100.0,
        extent=(-0.5, n - 0.5, gap + 0.5, gap - 0.5),
    )
    size = 9 if n <= 8 else 7
    for i in range(n + 1):
        row = shares[i] if i < n else below
        for j, share in enumerate(row):
            axes.text(
                j,
                i if i < n else gap,
                texts[i][j] if i < n else f"{100 * share:.1f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if share < _DARK else "black",
            )
    for i in range(n):
        box = Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2.5)
        axes.add_patch(box)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(gap + 0.5, -0.5)
    turned = longest > 9 and n > 2
    axes.set_xticks(
        range(n), labels, rotation=30 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_yticks([*range(n), gap], [*labels, below_title])
    axes.set_xlabel(column_title)
    axes.set_ylabel(row_title)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=10)
    figure.colorbar(drawn, ax=axes, label=scale_title, shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

"""The pictures of a run: the distilled images, and accuracy over eps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.files import write_bytes
from robustdd_bench.protocol.tracks import AttackSpec, Track, eps_label
from robustdd_bench.records.parts import Aggregates

MAX_COLUMNS = 20
MIN_SIDE_PX = 32
PADDING_PX = 2


def distilled_grid(distilled: DistilledSet, num_classes: int, columns: int = MAX_COLUMNS) -> Tensor:
    """One row for each of the first classes, at most `columns` images in it.

    Images are enlarged to at least 32 pixels. Mosaics are shown as they are stored.

    Returns:
        uint8 (3,H,W). Pixels outside [0,1] are clipped, for the picture only.
    """
    images = distilled.images.clamp(0, 1)
    if images.shape[1] not in (1, 3):  # no picture has so many channels: show their mean
        images = images.mean(1, keepdim=True)
    images = images.mul(255).round().to(torch.uint8)
    labels = distilled.labels.argmax(1) if distilled.soft_labels else distilled.labels
    counts = torch.bincount(labels, minlength=num_classes)[:num_classes].tolist()
    width, height = grid_size(images.shape[1:], counts, columns)
    scale = _scale(images.shape[-1])
    tiles = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    grid = torch.full((3, height, width), 255, dtype=torch.uint8)
    step_y, step_x = (side + PADDING_PX for side in tiles.shape[-2:])
    for k in range(num_classes):
        for column, tile in enumerate(tiles[labels == k][:columns]):
            y, x = PADDING_PX + k * step_y, PADDING_PX + column * step_x
            grid[:, y : y + tile.shape[-2], x : x + tile.shape[-1]] = tile
    return grid


def _scale(width: int) -> int:
    return -(-MIN_SIDE_PX // width)


def grid_size(
    shape_CHW: Sequence[int], images_per_class: Sequence[int], columns: int = MAX_COLUMNS
) -> tuple[int, int]:
    """Width and height of `distilled_grid` in pixels."""
    scale = _scale(shape_CHW[2])
    across, down = min(columns, max(images_per_class)), len(images_per_class)
    sides = ((across, shape_CHW[2]), (down, shape_CHW[1]))
    width, height = (count * (side * scale + PADDING_PX) + PADDING_PX for count, side in sides)
    return width, height


def png(picture: Tensor) -> bytes:
    """A picture, uint8 (3,H,W), as PNG."""
    from PIL import Image

    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def save_distilled(path: Path, distilled: DistilledSet, num_classes: int) -> None:
    """Write the grid of a distilled set as PNG."""
    content = png(distilled_grid(distilled, num_classes))
    write_bytes(path, content)


def attack_label(spec: AttackSpec) -> str:
    """What a legend calls an attack: alone or after those before it, where it was run."""
    label = f"{spec.name} alone" if spec.on == "all" else f"and {spec.name}"
    if spec.at == "headline":
        label += ", headline eps only"
    return label if spec.examples is None else f"{label}, first {spec.examples} examples"


def attack_points(spec: AttackSpec, aggregates: Aggregates) -> list[tuple[float, float]]:
    """Eps and mean accuracy in [0,1] of an attack of the suite; clean first, where it belongs."""
    points = [(a.eps, a.accuracy.mean) for a in aggregates.attacks if a.attack == spec.name]
    return [(0.0, aggregates.clean.mean), *points] if spec.at == "ladder" else points


def save_robustness(path: Path, aggregates: Aggregates, track: Track, title: str) -> None:
    """Write `robustness_png`."""
    content = robustness_png(aggregates, track, title)
    write_bytes(path, content)


def robustness_png(aggregates: Aggregates, track: Track, title: str) -> bytes:
    """Accuracy over eps as PNG: the worst case, and each attack alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ladder = [0.0, *track.threat.ladder]
    for spec in track.attacks:
        points = [(eps, 100 * mean) for eps, mean in attack_points(spec, aggregates)]
        axes.plot(
            *zip(*points, strict=True),
            linestyle="--",
            linewidth=1,
            marker="x" if len(points) == 1 else "",
            label=attack_label(spec),
        )
    worst = [aggregates.clean, *(row.accuracy for row in aggregates.robust)]
    means = [100 * w.mean for w in worst]
    deviation = [100 * (w.std or 0.0) for w in worst]
    axes.fill_between(
        ladder,
        [m - d for m, d in zip(means, deviation, strict=True)],
        [m + d for m, d in zip(means, deviation, strict=True)],
        color="black",
        alpha=0.15,
        linewidth=0,
    )
    axes.plot(
        ladder,
        means,
        color="black",
        marker="o",
        label="worst case over these (± std over students)",
    )
    axes.axvline(track.threat.headline, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(ladder, ["clean", *(eps_label(eps) for eps in track.threat.ladder)])
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"eps ({track.threat.norm}; dotted: headline)")
    axes.set_ylabel("accuracy of the students, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

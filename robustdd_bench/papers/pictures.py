"""The images of a distilled set as a figure: a row a class with its name, enlarged, a title."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import RECORD_FILE, SET_FILE
from robustdd_bench.files import write_bytes
from robustdd_bench.papers.plots import POINTS, STYLE, check_suffix
from robustdd_bench.protocol.imagenet.classes import SUBSETS
from robustdd_bench.records.record import Record, read_record

NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    "fashion-mnist": (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
        "ankle boot",
    ),
    **{name: subset.names for name, subset in SUBSETS.items()},
}  # fmt: skip
"""Classes of data sets that are known by their names; a class of another one is its number."""
GAP = 1
"""Pixels between images, before they are enlarged."""
DPI = 72
MARGIN, TITLE, LETTER = 4, 16, 6.1
"""In points, which are the pixels of a PNG."""


def read_set(path: Path) -> tuple[DistilledSet, Record | None]:
    """A distilled set, and the record of the run it is from.

    Args:
        path: the folder of a run, or the file of a set.

    Raises:
        UsageError: there is no set, or the record cannot be read.
    """
    folder = path.parent if path.name == RECORD_FILE else path
    if not folder.is_dir():
        return DistilledSet.load(path), None
    record = read_record(folder / RECORD_FILE) if (folder / RECORD_FILE).exists() else None
    if not (folder / SET_FILE).exists():
        raise UsageError(f"{folder} has no {SET_FILE}; name the folder of a run, or a set")
    return DistilledSet.load(folder / SET_FILE), record


def save_picture(
    path: Path,
    distilled: DistilledSet,
    record: Record | None = None,
    *,
    scale: int = 2,
    images: int = 10,
    title: str | None = None,
) -> None:
    """Write the figure.

    Args:
        path: ends in .pdf, .svg or .png.
        distilled: the set; mosaics are shown as they are stored.
        record: of its run, for the names of classes and the title.
        scale: how many pixels a side each pixel becomes.
        images: of each class, at most.
        title: above the figure; None: method, track and seed; "": none.

    Raises:
        UsageError: the suffix is another one, or a number is not positive.
        RunFailedError: the file cannot be written.
    """
    check_suffix(path)
    if scale < 1 or images < 1:
        raise UsageError("a picture needs a scale and a number of images of 1 at least")
    content = picture_bytes(
        distilled, record, path.suffix.lower()[1:], scale=scale, images=images, title=title
    )
    write_bytes(path, content)


def picture_bytes(
    distilled: DistilledSet,
    record: Record | None,
    form: str,
    *,
    scale: int = 2,
    images: int = 10,
    title: str | None = None,
) -> bytes:
    """The figure as "pdf", "svg" or "png"; the same bytes whenever it is drawn.

    In a PNG each pixel of a set is a square of scale x scale pixels.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid, rows = _grid(distilled, images)
    names = class_names(distilled, record)
    side = distilled.images.shape[2] + GAP
    height, width = (scale * size for size in grid.shape[:2])
    said = _title(record) if title is None else title
    left = math.ceil(LETTER * max(len(names[k]) for k in rows)) + 2 * MARGIN
    wide, high = left + width + MARGIN, MARGIN + height + MARGIN + (TITLE if said else 0)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(wide / DPI, high / DPI), dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((left / wide, MARGIN / high, width / wide, height / high))
        axes.imshow(grid.numpy(), interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        centres = [number * side + (side - GAP) / 2 - 0.5 for number in range(len(rows))]
        axes.set_yticks(centres, [names[k] for k in rows])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if said:
            figure.text(left / wide, 1 - TITLE / high, said, fontsize=POINTS, va="bottom")
        buffer = io.BytesIO()
        kept = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
        figure.savefig(buffer, format=form, metadata=kept[form])
    return buffer.getvalue()


def _grid(distilled: DistilledSet, most: int) -> tuple[torch.Tensor, list[int]]:
    """Images side by side, uint8 (H,W,3), and the class of each row."""
    pixels = distilled.images.clamp(0, 1).mul(255).round().to(torch.uint8)
    if pixels.shape[1] not in (1, 3):  # no picture has so many channels: show their mean
        pixels = pixels.float().mean(1, keepdim=True).to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    labels = distilled.labels.argmax(1) if distilled.soft_labels else distilled.labels
    rows: list[int] = labels.unique().tolist()
    columns = min(most, int(torch.bincount(labels).max()))
    height, width = (size + GAP for size in pixels.shape[1:3])
    grid = torch.full((len(rows) * height - GAP, columns * width - GAP, 3), 255, dtype=torch.uint8)
    for number, k in enumerate(rows):
        for column, image in enumerate(pixels[labels == k][:columns]):
            y, x = number * height, column * width
            grid[y : y + height - GAP, x : x + width - GAP] = image
    return grid, rows


def class_names(distilled: DistilledSet, record: Record | None) -> Sequence[str]:
    """The name of each class; its number where nothing says it."""
    labels = distilled.labels
    count = labels.shape[1] if distilled.soft_labels else int(labels.max()) + 1
    known: tuple[str, ...] = ()
    if record is not None and record.data is not None:
        count = max(count, record.data.num_classes)
        known = record.data.classes or NAMES.get(record.data.dataset, ())
    return known if len(known) >= count else [str(k) for k in range(count)]


def _title(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{record.method.name}, {record.track.id}, seed {record.seed}"

"""Export a run: the set in a layout, its record, its picture, what to cite, and a card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustdd_bench.board.views.tables import run_table
from robustdd_bench.citations import benchmark, citations, merged
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import save_distilled
from robustdd_bench.errors import UsageError
from robustdd_bench.exports.layouts import LAYOUTS, Layout, Space, choose_space
from robustdd_bench.filenames import RECORD_FILE, SET_FILE, SET_PICTURE
from robustdd_bench.files import write_text
from robustdd_bench.plugins import Registry
from robustdd_bench.records.record import Record
from robustdd_bench.text.tables import markdown_table

CARD, BIBTEX, IMAGES_FOLDER = "README.md", "citation.bib", "images"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    """Names of all files, below the folder."""
    losses: tuple[str, ...]
    """What the layout does not hold, in a sentence each."""


def export(
    distilled: DistilledSet,
    record: Record | None,
    source: Path,
    target: Path,
    registry: Registry,
    *,
    layout: str,
    space: str | None = None,
    statistics: str | None = None,
    force: bool = False,
) -> Exported:
    """Write a set for other codes.

    Args:
        distilled: the set.
        record: of its run; None of a set alone.
        source: the folder of the run, or the file of the set.
        target: the folder to write; it must be new or empty.
        registry: what is installed, for what is to be cited.
        layout: one of `LAYOUTS`.
        space: "raw" or "normalised"; None: the layout's own.
        statistics: what images are normalised with; None: those of the DC and MTT codes.
        force: whether files in `target` may be written over.

    Raises:
        UsageError: the layout cannot hold the set, or the folder is taken.
        RunFailedError: the folder cannot be written.
    """
    chosen = LAYOUTS[layout]
    if distilled.soft_labels and not chosen.soft:
        able = ", ".join(name for name, one in LAYOUTS.items() if one.soft)
        raise UsageError(f"layout {layout} has no soft labels, as this set has; choose {able}")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not force)):
        raise UsageError(f"{target} is there already; choose another folder, or add --force")
    dataset = record.data.dataset if record is not None and record.data is not None else None
    where = choose_space(chosen, space, statistics, dataset, distilled.images.shape[1])
    if layout == "imagefolder" and where.kind != "raw":
        raise UsageError("layout imagefolder has pixels: leave --space out, or name raw")
    images = where.apply(distilled.images)
    folder = target / IMAGES_FOLDER if layout == "imagefolder" else target
    folder.mkdir(parents=True, exist_ok=True)
    names = chosen.write(folder, images, distilled.labels, distilled)
    prefix = f"{IMAGES_FOLDER}/" if layout == "imagefolder" else ""
    files = [f"{prefix}{name}" for name in names]
    losses = _losses(distilled, layout, images)
    files += _beside(distilled, record, source, target, registry)
    card = card_text(distilled, record, chosen, where, losses, names=files)
    write_text(target / CARD, card)
    return Exported(target, (*files, CARD), tuple(losses))


def _losses(distilled: DistilledSet, layout: str, images: Tensor) -> list[str]:
    """What is lost on the way, measured."""
    found = []
    if layout == "imagefolder":
        levels = images.clamp(0, 1).mul(255).round() / 255
        off = (levels - images).abs()
        outside = ((images < 0) | (images > 1)).double().mean()
        found.append(
            f"pixels are rounded to 8 bits and clipped to [0,1]: {100 * float(outside):.1f} % of "
            f"them lay outside, the largest change is {float(off.max()):.3f}, the mean one "
            f"{float(off.mean()):.4f}"
        )
    if distilled.learning_rate is not None and layout in ("dc", "imagefolder"):
        found.append(
            f"the learning rate that the set brings, {distilled.learning_rate:.6g}, is in this "
            "card alone"
        )
    if distilled.augmentation is not None:
        found.append(f"the augmentation that the set brings: {distilled.augmentation}")
    if distilled.preprocessing is not None:
        found.append(
            f"the layer that the set was made for ({distilled.preprocessing.kind}) is not in its "
            "pixels; its students were trained behind it"
        )
    if distilled.teacher is not None:
        found.append("the teacher that labels what students see is left out")
    if distilled.mosaic > 1:
        found.append(
            f"images are mosaics of {distilled.mosaic}x{distilled.mosaic}: students see each tile "
            "enlarged to full size"
        )
    return found


def _beside(
    distilled: DistilledSet,
    record: Record | None,
    source: Path,
    target: Path,
    registry: Registry,
) -> list[str]:
    """The set as it is, its record, its picture and what to cite."""
    distilled.save(target / SET_FILE)
    labels = distilled.labels
    classes = labels.shape[1] if distilled.soft_labels else int(labels.max()) + 1
    save_distilled(target / SET_PICTURE, distilled, classes)
    names = [SET_FILE, SET_PICTURE]
    found = [benchmark()]
    if record is not None:
        folder = source.parent if source.name == RECORD_FILE else source
        shutil.copyfile(folder / RECORD_FILE, target / RECORD_FILE)
        names.append(RECORD_FILE)
        wanted = (("distillers", record.method.name), ("datasets", record.track.data.dataset))
        for kind, name in wanted:
            entry = registry.entries[kind].get(name)
            found += () if entry is None else citations(entry)
    write_text(target / BIBTEX, "\n".join(one.bibtex() for one in merged(found)))
    return [*names, BIBTEX]


def card_text(
    distilled: DistilledSet,
    record: Record | None,
    layout: Layout,
    space: Space,
    losses: list[str],
    *,
    names: list[str],
) -> str:
    """The card, in Markdown with a YAML header as dataset hubs read it."""
    method = record.method.name if record is not None else "unknown method"
    count, *shape = distilled.images.shape
    size = "n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"
    header = [
        "---",
        "task_categories:",
        "- image-classification",
        "tags:",
        "- dataset-distillation",
        "- adversarial-robustness",
        "- robustdd-bench",
        "size_categories:",
        f"- {size}",
        "---",
    ]
    soft = distilled.soft_labels
    labels = "soft" if soft else "hard"
    kind = "distributions of shape (n, classes)" if soft else "integers of shape (n,)"
    rate = distilled.learning_rate
    what = [
        f"# A distilled set of {method}"
        + (f" for {record.track.id}" if record is not None else ""),
        "",
        f"{count} images of shape {'x'.join(map(str, shape))}, {labels} labels, learning rate "
        f"{'that of your recipe' if rate is None else f'{rate:.6g}'}. Made and judged with "
        "robustdd-bench.",
        "",
        "## Load it",
        "",
        "```python",
        "import numpy, torch, torchvision",
        "",
        layout.reads,
        "```",
        "",
        f"Layout `{layout.name}`: {layout.summary}. Images are {space}. Labels are {kind}.",
        "",
        f"`{SET_FILE}` is the set as robustdd-bench has it: "
        f"`robustdd evaluate {SET_FILE} --track TRACK`.",
    ]
    if losses:
        what += ["", "## What the layout does not hold", "", *(f"- {loss}" for loss in losses)]
    if record is not None:
        table = run_table(record)
        what += [
            "",
            "## How robust it is",
            "",
            markdown_table(table).rstrip(),
            "",
            f"{table.title}.",
            "",
            "## Make it again",
            "",
            "```console",
            record.command_to_repeat,
            "```",
            "",
            f"Run `{record.run_id}`; `{RECORD_FILE}` has every figure and how it came about. The "
            f"SHA-256 of the set is `{distilled.sha256()}`.",
        ]
    listed = [name for name in names if not name.startswith(f"{IMAGES_FOLDER}/")]
    what += ["", "## Cite it", "", f"`{BIBTEX}` has what to cite.", ""]
    what += [f"Files: {', '.join(f'`{name}`' for name in listed)}.", ""]
    return "\n".join([*header, "", *what])

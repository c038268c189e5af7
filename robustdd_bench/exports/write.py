"""Export a run: the set in a layout, its record, its picture, what to cite, and a card."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.citations import Citation, benchmark, citations, merged
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import save_distilled
from robustdd_bench.errors import UsageError
from robustdd_bench.exports.card import BIBTEX, CARD, Description, card_text
from robustdd_bench.exports.content import Content
from robustdd_bench.exports.croissant import CROISSANT, croissant
from robustdd_bench.exports.layouts import LAYOUTS, Layout, choose_space
from robustdd_bench.filenames import RECORD_FILE, SET_FILE, SET_PICTURE
from robustdd_bench.files import write_json, write_text
from robustdd_bench.papers.pictures import class_names
from robustdd_bench.plugins import Registry
from robustdd_bench.records.record import Record


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
    licence: str | None = None,
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
        licence: of the set, an SPDX expression, for the card; None: none is stated.
        force: whether files in `target` may be written over.

    Raises:
        UsageError: the layout cannot hold the set, or the folder is taken.
        RunFailedError: the folder cannot be written.
    """
    chosen = LAYOUTS[layout]
    _check_layout(chosen, distilled)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not force)):
        raise UsageError(f"{target} is there already; choose another folder, or add --force")
    if chosen.pixels_only and space not in (None, "raw"):
        raise UsageError(f"layout {layout} has pixels: leave --space out, or name raw")
    dataset = record.data.dataset if record is not None and record.data is not None else None
    where = choose_space(chosen, space, statistics, dataset, distilled.images.shape[1])
    content = Content(
        images=where.apply(distilled.images),
        distilled=distilled,
        classes=class_names(distilled, record),
    )
    folder = target / chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    written = chosen.write(folder, content)
    files = [f"{chosen.folder}/{name}" if chosen.folder else name for name in written]
    cited = _cited(record, registry)
    files += _beside(distilled, record, source, target)
    write_text(target / BIBTEX, "\n".join(one.bibtex() for one in cited))
    files.append(BIBTEX)
    about = Description(
        layout=chosen,
        space=where,
        content=content,
        record=record,
        licence=licence,
        losses=tuple(_losses(chosen, content)),
    )
    if layout == "hub":
        write_json(target / CROISSANT, croissant(about, target / written[0], cited))
        files.append(CROISSANT)
    write_text(target / CARD, card_text(about, files))
    return Exported(target, (*files, CARD), about.losses)


def _check_layout(layout: Layout, distilled: DistilledSet) -> None:
    """Refuse a layout that cannot be written, or cannot hold the set."""
    if distilled.soft_labels and not layout.soft:
        able = ", ".join(name for name, one in LAYOUTS.items() if one.soft)
        raise UsageError(f"layout {layout.name} has no soft labels, as this set has; choose {able}")
    if layout.needs and importlib.util.find_spec(layout.needs) is None:
        raise UsageError(
            f"layout {layout.name} needs {layout.needs}: pip install 'robustdd-bench[hub]'"
        )
    channels = distilled.images.shape[1]
    if layout.pixels_only and channels not in (1, 3):
        raise UsageError(
            f"layout {layout.name} has pictures of 1 or 3 channels, and the set has {channels}; "
            "choose tensors or npz"
        )


def _losses(layout: Layout, content: Content) -> list[str]:
    """What is lost on the way, measured."""
    distilled, images = content.distilled, content.images
    found = []
    if layout.pixels_only:
        levels = images.clamp(0, 1).mul(255).round() / 255
        off = (levels - images).abs()
        outside = ((images < 0) | (images > 1)).double().mean()
        exact = "; the column pixels has them as they are" if layout.name == "hub" else ""
        what = "pixels of the column image" if layout.name == "hub" else "pixels"
        found.append(
            f"{what} are rounded to 8 bits and clipped to [0,1]: {100 * float(outside):.1f} % of "
            f"them lay outside, the largest change is {float(off.max()):.3f}, the mean one "
            f"{float(off.mean()):.4f}{exact}"
        )
    if distilled.learning_rate is not None and not layout.rate:
        found.append(
            f"the learning rate that the set brings, {distilled.learning_rate:.6g}, is in this "
            f"card and in {SET_FILE} alone"
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
    distilled: DistilledSet, record: Record | None, source: Path, target: Path
) -> list[str]:
    """The set as it is, its record and its picture."""
    distilled.save(target / SET_FILE)
    labels = distilled.labels
    classes = labels.shape[1] if distilled.soft_labels else int(labels.max()) + 1
    save_distilled(target / SET_PICTURE, distilled, classes)
    names = [SET_FILE, SET_PICTURE]
    if record is not None:
        folder = source.parent if source.name == RECORD_FILE else source
        shutil.copyfile(folder / RECORD_FILE, target / RECORD_FILE)
        names.append(RECORD_FILE)
    return names


def _cited(record: Record | None, registry: Registry) -> list[Citation]:
    """What is to be cited: the benchmark, the method and the data."""
    found = [benchmark()]
    if record is not None:
        wanted = (("distillers", record.method.name), ("datasets", record.track.data.dataset))
        for kind, name in wanted:
            entry = registry.entries[kind].get(name)
            found += () if entry is None else citations(entry)
    return merged(found)

"""The card of an export: README.md, with the YAML header that hubs of datasets read."""

from __future__ import annotations

import json
from dataclasses import dataclass

from robustdd_bench.board.views.tables import run_table
from robustdd_bench.exports.content import Content
from robustdd_bench.exports.layouts import Layout, Space
from robustdd_bench.exports.parquet import PARQUET_FILE
from robustdd_bench.filenames import RECORD_FILE, SET_FILE
from robustdd_bench.records.record import Record
from robustdd_bench.text.tables import markdown_table

CARD, BIBTEX = "README.md", "citation.bib"
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
_CREATIVE_COMMONS = (
    "cc0-1.0",
    *(f"cc-{kind}-{n}" for kind in ("by", "by-sa", "by-nc", "by-nc-sa") for n in ("3.0", "4.0")),
)
_HUB_LICENCES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", *_CREATIVE_COMMONS}
"""SPDX identifiers, in small letters, that hubs know by the same name."""
TAGS = ("dataset-distillation", "adversarial-robustness", "robustdd-bench")


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a card and the metadata of an export are made from."""

    layout: Layout
    space: Space
    content: Content
    record: Record | None
    licence: str | None
    """An SPDX expression; None: none is stated."""
    losses: tuple[str, ...]
    """What the layout does not hold, in a sentence each."""

    @property
    def title(self) -> str:
        """What the set is, in words."""
        if self.record is None:
            return "A distilled set of unknown method"
        return f"A distilled set of {self.record.method.name} for {self.record.track.id}"

    @property
    def summary(self) -> str:
        """Its size, labels and learning rate, in a sentence."""
        count, *shape = self.content.images.shape
        labels = "soft" if self.content.distilled.soft_labels else "hard"
        rate = self.content.distilled.learning_rate
        said = "that of your recipe" if rate is None else f"{rate:.6g}"
        return (
            f"{count} images of shape {'x'.join(map(str, shape))}, {labels} labels, learning "
            + (f"rate {said}.")
        )


def card_text(about: Description, names: list[str]) -> str:
    """The card, in Markdown.

    Args:
        about: the export.
        names: of its files.
    """
    content, layout, record = about.content, about.layout, about.record
    soft = content.distilled.soft_labels
    kind = "distributions of shape (n, classes)" if soft else "integers of shape (n,)"
    shape = ", ".join(map(str, content.images.shape[1:]))
    column = "soft_label" if soft else "label"
    what = [
        f"# {about.title}",
        "",
        f"{about.summary} Made and judged with robustdd-bench.",
        "",
        "## Load it",
        "",
        "```python",
        "import numpy, pandas" if layout.name == "hub" else "import numpy, torch, torchvision",
        "",
        layout.reads.replace("{shape}", shape).replace("{label}", column),
        "```",
        "",
        f"Layout `{layout.name}`: {layout.summary}. Images are {about.space}. Labels are {kind}.",
        "",
        f"`{SET_FILE}` is the set as robustdd-bench has it: "
        f"`robustdd evaluate {SET_FILE} --track TRACK`.",
    ]
    if about.losses:
        losses = (f"- {loss}" for loss in about.losses)
        what += ["", "## What the layout does not hold", "", *losses]
    if record is not None:
        what += ["", *_results(record, content)]
    listed = [name for name in names if not (layout.folder and name.startswith(layout.folder))]
    what += ["", "## Cite it", "", f"`{BIBTEX}` has what to cite.", ""]
    what += [f"Files: {', '.join(f'`{name}`' for name in listed)}.", ""]
    return "\n".join([*_header(about), "", *what])


def _results(record: Record, content: Content) -> list[str]:
    table = run_table(record)
    return [
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
        f"SHA-256 of the set is `{content.distilled.sha256()}`.",
    ]


def _header(about: Description) -> list[str]:
    """YAML; every value that is not ours is quoted as JSON, which YAML holds."""
    count = len(about.content.images)
    size = next((name for most, name in SIZES if count < most), "100K<n<1M")
    lines = ["---"]
    if about.licence is not None:
        known = about.licence.lower()
        named = ["license: other", f"license_name: {json.dumps(about.licence)}"]
        lines += [f"license: {known}"] if known in _HUB_LICENCES else named
    lines += ["task_categories:", "- image-classification", "tags:", *(f"- {tag}" for tag in TAGS)]
    lines += ["size_categories:", f"- {size}"]
    if about.layout.name == "hub":
        lines += ["configs:", "- config_name: default", "  data_files:"]
        lines += ["  - split: train", f"    path: {PARQUET_FILE}"]
    return [*lines, "---"]

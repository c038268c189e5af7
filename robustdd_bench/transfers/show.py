"""What people see of a transfer matrix: a table in 80 columns, a picture, and its files."""

from __future__ import annotations

from pathlib import Path

from robustdd_bench.drawing.heatmap import heatmap_png
from robustdd_bench.evaluation.statistics.means import Aggregate
from robustdd_bench.filenames import MATRIX_FILE, MATRIX_PICTURE
from robustdd_bench.files import atomic_write, write_json
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.text.tables import Column, Table, TableCell, TableRow
from robustdd_bench.transfers.matrix import TransferMatrix

WIDTH = 80
FIRST = "made on"


def percent(one: Aggregate, *, spread: bool) -> str:
    """An accuracy in per cent; with `spread`, and several students, its deviation over them."""
    text = f"{100 * one.mean:.1f}"
    return f"{text} ±{100 * one.std:.1f}" if spread and one.std is not None else text


def heading(matrix: TransferMatrix) -> str:
    """What was done, in one line."""
    return (
        f"accuracy in %; {matrix.attack}, {matrix.norm} eps {eps_label(matrix.eps)}, "
        f"{matrix.examples} images"
    )


def matrix_table(matrix: TransferMatrix) -> Table:
    """Rows are what examples were made on, columns what was judged; clean accuracy is below.

    Columns are numbered, and deviations left out, where 80 characters do not hold them.
    """
    labels = matrix.labels
    for spread, numbered in ((True, False), (True, True), (False, False), (False, True)):
        table = _table(matrix, labels, spread, numbered)
        if _width(table) <= WIDTH:
            break
    return table


def _table(matrix: TransferMatrix, labels: list[str], spread: bool, numbered: bool) -> Table:
    names = [f"{i} {label}" for i, label in enumerate(labels, 1)] if numbered else labels
    heads = [str(i) for i in range(1, len(labels) + 1)] if numbered else labels
    columns = [Column(key="made_on", heading=FIRST, number=False)]
    columns += [Column(key=label, heading=head) for label, head in zip(labels, heads, strict=True)]

    def row(name: str, found: list[Aggregate], *, apart: bool = False) -> TableRow:
        cells = [TableCell(name, {"": name})]
        for one in found:
            raw = {"": one.mean, "_std": one.std, "_low": one.low, "_high": one.high}
            cells.append(TableCell(percent(one, spread=spread), raw))
        return TableRow(tuple(cells), apart)

    rows = [
        row(name, [cell.accuracy for cell in cells])
        for name, cells in zip(names, matrix.cells, strict=True)
    ]
    rows.append(row("(clean)", list(matrix.clean), apart=True))
    return Table(
        columns=tuple(columns),
        rows=tuple(rows),
        title=f"{heading(matrix)}; judged on the students in columns",
        notes=_notes(matrix, spread),
        label="transfer",
    )


def _notes(matrix: TransferMatrix, spread: bool) -> tuple[str, ...]:
    made = "each student" if matrix.sources == "all" else "the first student"
    notes = [
        f"Examples of every image, made on {made} of a run; an example counts as broken if the "
        "student was right on the image and is wrong on it. On the diagonal: examples of the "
        "student itself (white box)."
    ]
    siblings = [
        f"{cell.source} {100 * cell.siblings:.1f}"
        for i, row in enumerate(matrix.cells)
        for cell in row[i : i + 1]
        if cell.siblings is not None
    ]
    if siblings:
        notes.append(f"On examples of other students of the same run: {', '.join(siblings)}.")
    if spread and any(one.std is not None for one in matrix.clean):
        notes.append("± is the standard deviation over the students judged.")
    notes += [f"{matrix.attack}: {text}" for text in matrix.remarks]
    return tuple(notes)


def _width(table: Table) -> int:
    texts = [table.headings(), *table.texts()]
    return sum(max(map(len, column)) + 2 for column in zip(*texts, strict=True)) + 2


def matrix_png(matrix: TransferMatrix) -> bytes:
    """The picture, as PNG."""
    spread = len(matrix.runs) <= 8
    return heatmap_png(
        matrix.accuracy,
        [
            [percent(cell.accuracy, spread=spread).replace(" ", "\n") for cell in row]
            for row in matrix.cells
        ],
        matrix.labels,
        [one.mean for one in matrix.clean],
        title=f"{matrix.attack}, {matrix.norm} eps {eps_label(matrix.eps)}, "
        f"{matrix.examples} images\nboxed: white box",
        row_title="examples made on the students of",
        column_title="judged on the students of",
        below_title="(clean)",
        scale_title="accuracy, %",
    )


def write_matrix(matrix: TransferMatrix, out: Path) -> tuple[Path, Path]:
    """Write the figures and the picture into a folder.

    Raises:
        RunFailedError: a file cannot be written.
    """
    figures, picture = out / MATRIX_FILE, out / MATRIX_PICTURE
    write_json(figures, matrix.to_dict())
    content = matrix_png(matrix)
    with atomic_write(picture) as file:
        file.write(content)
    return figures, picture

"""A set as one Parquet file, which hubs of datasets show and `pandas.read_parquet` loads.

Columns: `image`, a PNG of 8 bits for people to look at; `label`, the class; `soft_label`, K numbers
of a soft one; `pixels`, C*H*W numbers of float32, the set itself without any rounding. The names
of the classes and the kinds of the columns are in the file's metadata, as the Datasets library of
Hugging Face reads them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from robustdd_bench.exports.content import Content, png_bytes
from robustdd_bench.files import write_bytes

PARQUET_FILE = "data/train-00000-of-00001.parquet"
"""Its name says the split and the number of files, as hubs have it."""


def features(content: Content) -> dict[str, Any]:
    """The columns, in the words of the Datasets library."""

    def numbers(length: int) -> dict[str, Any]:
        value = {"dtype": "float32", "_type": "Value"}
        return {"feature": value, "length": length, "_type": "Sequence"}

    found: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(content.classes), "_type": "ClassLabel"},
    }
    if content.distilled.soft_labels:
        found["soft_label"] = numbers(content.labels.shape[1])
    found["pixels"] = numbers(content.images[0].numel())
    return found


def write_parquet(folder: Path, content: Content) -> list[str]:
    """Write the file below a folder; the same set gives the same bytes with one pyarrow.

    Returns:
        Its name below the folder.

    Raises:
        RunFailedError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    soft = content.distilled.soft_labels
    labels = content.labels.argmax(1) if soft else content.labels
    rows = content.images.contiguous().flatten(1)
    pictures = [
        {"bytes": png_bytes(image), "path": f"{number:05d}.png"}
        for number, image in enumerate(content.images)
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array(pictures, image),
        "label": pa.array(labels.numpy(), pa.int64()),
    }
    if soft:
        weights = content.labels.contiguous()
        columns["soft_label"] = pa.FixedSizeListArray.from_arrays(
            pa.array(weights.flatten().numpy(), pa.float32()), weights.shape[1]
        )
    columns["pixels"] = pa.FixedSizeListArray.from_arrays(
        pa.array(rows.flatten().numpy(), pa.float32()), rows.shape[1]
    )
    said = json.dumps({"info": {"features": features(content)}})
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(columns).replace_schema_metadata({"huggingface": said}),
        buffer,
        use_dictionary=False,
    )
    path = folder / PARQUET_FILE
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, buffer.getvalue())
    return [PARQUET_FILE]

"""croissant.json: what an export holds, as MLCommons Croissant 1.0 describes datasets.

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustdd_bench import __version__
from robustdd_bench.citations import Citation
from robustdd_bench.exports.card import TAGS, Description
from robustdd_bench.exports.parquet import PARQUET_FILE
from robustdd_bench.files import file_sha256

CROISSANT = "croissant.json"
_OURS = (
    "citeAs column conformsTo equivalentProperty extract field fileProperty fileObject fileSet "
    "format includes isLiveDataset jsonPath key md5 parentField path recordSet references regex "
    "repeated replace samplingRate separator source subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in _OURS.split()},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
"""The context that the specification asks for, word for word."""


def croissant(about: Description, parquet: Path, cited: Sequence[Citation]) -> dict[str, Any]:
    """The description of an export of layout `hub`.

    Args:
        about: the export.
        parquet: its file of images, which is there already.
        cited: what is to be cited.
    """
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": _name(about),
        "description": f"{about.title}: {about.summary}",
        "citeAs": "\n".join(one.bibtex() for one in cited),
        "keywords": list(TAGS),
        "version": __version__,
    }
    if about.licence is not None:
        found["license"] = about.licence
    if about.record is not None:
        found["datePublished"] = about.record.costs.finished.date().isoformat()
    found["distribution"] = [
        {
            "@type": "cr:FileObject",
            "@id": "images.parquet",
            "name": "images.parquet",
            "contentUrl": PARQUET_FILE,
            "encodingFormat": "application/x-parquet",
            "sha256": file_sha256(parquet),
        }
    ]
    found["recordSet"] = [
        {
            "@type": "cr:RecordSet",
            "@id": "images",
            "name": "images",
            "description": "An image of the set a record.",
            "field": _fields(about),
        }
    ]
    return found


def _name(about: Description) -> str:
    if about.record is None:
        return "distilled-set"
    return f"{about.record.method.name}-{about.record.track.id}-{about.record.run_id}"


def _fields(about: Description) -> list[dict[str, Any]]:
    pixels = "x".join(map(str, about.content.images.shape[1:]))
    fields = [
        _field("image", "sc:ImageObject", "The image, rounded to 8 bits.", path="bytes"),
        _field("label", "sc:Integer", "Its class, from 0."),
        _field(
            "pixels",
            "sc:Float",
            f"The image as it is, float32, in the order of its shape {pixels}.",
            many=True,
        ),
    ]
    if about.content.distilled.soft_labels:
        fields.append(_field("soft_label", "sc:Float", "Its label: a number a class.", many=True))
    return fields


def _field(
    name: str, kind: str, description: str, *, path: str = "", many: bool = False
) -> dict[str, Any]:
    source: dict[str, Any] = {
        "fileObject": {"@id": "images.parquet"},
        "extract": {"column": name},
    }
    if path:
        source["transform"] = {"jsonPath": path}
    found = {
        "@type": "cr:Field",
        "@id": f"images/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": source,
    }
    return found | ({"repeated": True} if many else {})

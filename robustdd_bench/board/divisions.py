"""Divisions of a board: sets that are ranked among themselves.

Three properties of a set decide its division; what differs in any of them is never ranked together.

- **labels**: a soft label tells more than an image's class does, and a teacher that is stored with
  the set and labels every view of an image tells more than one label does. The teacher counts on
  tracks whose students are taught by it; elsewhere it is not used.
- **own preprocessing**: a layer in front of the student that the set brings changes the function
  that is attacked, not the images alone.
- **imported**: a set that was made elsewhere comes without the run that made it; what it was tuned
  on, and from which data, cannot be checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robustdd_bench.protocol.tracks import Track
from robustdd_bench.records.parts import SetInfo
from robustdd_bench.records.record import Record

PLAIN = "hard"
"""The division of sets with hard labels and nothing of their own; the first of a board."""
TEACHER = "teacher"
"""Labels of sets whose teacher labels what students see."""
OWN_PREPROCESSING = "own preprocessing"
IMPORTED = "imported"
_QUALIFIERS = (OWN_PREPROCESSING, IMPORTED)

MARKS: Mapping[str, str] = {
    "reference": "An end of the scale rather than a distilled set; it has no rank.",
    "soft labels": "Its labels are distributions over classes, which tell more than a class does; "
    "a division of its own.",
    "teacher": "A network that is stored with the set labels every view of an image; a division of "
    "its own.",
    "own rate": "The set brings the learning rate that its students are trained with.",
    "own augmentation": "The set brings the augmentation that its students are trained with.",
    "own preprocessing": "The set's students see images behind the preprocessing it was made for, "
    "which changes the function that is attacked; a division of its own.",
    "imported": "The set was made elsewhere and read from a file; how it was made cannot be "
    "checked here; a division of its own.",
    "beyond pixels": "Some of its images leave [0,1], as no photograph does; students are trained "
    "on them as they are, and attacked within [0,1].",
    "mosaics": "Each of its images is a grid of small ones; students train on these, enlarged to "
    "full size, and so on more images than it stores. Images per class count stored ones, as the "
    "field counts them.",
    "near test images": "Some of its images are much closer to a test image than to any training "
    "image, so that they look like copies.",
    "training images": "All of its images are training images, as a selection's are.",
    "set reused": "The set was made by an earlier run and judged again under this version of "
    "the track.",
    "one seed": "One distillation seed: how much other sets of the method differ is not known.",
    "one set": "The method made the same set from several seeds: how much other sets would differ "
    "is not known.",
    "seeds not ranked": "None of its seeds is one that the track ranks, so it has no rank.",
    "other seeds": "It has runs of seeds that the track does not rank; they are listed and not "
    "counted.",
    "several versions": "Its runs were made with several versions of the method.",
    "other plugin": "The method is not shipped with robustdd-bench; reading its code is up to you.",
    "mixed": "Parts of a run were made by other commits, with another torch or on another machine; "
    "its record lists them by stage.",
    "changed code": "A run was made with uncommitted changes to the code.",
}
"""What the marks of rows mean."""


def division_of(record: Record) -> str:
    """The division of a run, e.g. "hard", "soft" or "hard, own preprocessing, imported"."""
    distilled = record.distilled
    if distilled is None:  # a failed run
        return PLAIN
    labels = TEACHER if is_taught(distilled, record.track) else distilled.labels
    return ", ".join([labels, *_qualifiers(record, distilled)])


def is_taught(distilled: SetInfo, track: Track) -> bool:
    """Whether students of a set are taught by its teacher."""
    return distilled.teacher is not None and track.students.teaching is not None


def _qualifiers(record: Record, distilled: SetInfo) -> Iterable[str]:
    if has_own_preprocessing(distilled, record.track):
        yield OWN_PREPROCESSING
    if record.given or "imported" in distilled.provenance:
        yield IMPORTED


def has_own_preprocessing(distilled: SetInfo, track: Track) -> bool:
    """Whether students of a set see images behind another layer than the track's."""
    own = distilled.preprocessing
    return own is not None and _layer(own) != _layer(track.preprocessing.model_dump())


def _layer(fields: dict[str, Any]) -> tuple[object, ...]:
    """What decides the function of a preprocessing, of all its fields."""
    kind = fields.get("kind", "none")
    if kind == "normalise":
        return (kind, *(tuple(map(float, fields.get(key, ()))) for key in ("mean", "std")))
    return (kind, float(fields.get("epsilon", 0.1))) if kind == "zca" else (kind,)


def place(division: str) -> tuple[object, ...]:
    """Where a division stands on a board: hard labels first, and in both what is plain."""
    labels, *qualifiers = division.split(", ")
    return (labels != "hard", labels, [name in qualifiers for name in reversed(_QUALIFIERS)])


def in_order(names: Iterable[str]) -> list[str]:
    """Each division once, in the order of a board."""
    return sorted(set(names), key=place)


def division_title(division: str) -> str:
    """How a division is called above its table, e.g. "Hard labels, own preprocessing"."""
    labels, *qualifiers = division.split(", ")
    named = _labels(labels)
    return ", ".join([named[:1].upper() + named[1:], *qualifiers])


def remark(division: str) -> str:
    """What tells a division from the plain one, e.g. "soft labels, imported"; "" for that."""
    labels, *qualifiers = division.split(", ")
    return ", ".join([_labels(labels)] * (labels != "hard") + qualifiers)


def _labels(labels: str) -> str:
    return "labels by a teacher" if labels == TEACHER else f"{labels} labels"

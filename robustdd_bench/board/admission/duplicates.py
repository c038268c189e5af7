"""Runs that cannot both be on one board: copies under another name, and changed protocols.

What a record says of its set, its students and their outcomes is as good as a fingerprint. A method
may well make the same set from other seeds (k-means does), and a set may be judged on other tracks;
nobody else's method makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from robustdd_bench.records.record import Record


def clashes(record: Record, others: Iterable[Record]) -> list[str]:
    """What in other runs of a board speaks against a run; each reason once.

    Args:
        record: a complete record.
        others: complete records, without this one.
    """
    return list(dict.fromkeys(line for other in others for line in _against(record, other)))


def _against(record: Record, other: Record) -> Iterator[str]:
    if record.track.id == other.track.id:
        if record.track_sha256 != other.track_sha256:
            yield (
                f"its track {record.track.id} is another one than that of the records before it; "
                "a changed protocol needs a new version"
            )
        elif record.data != other.data:
            yield f"its data are not those of the other records of {record.track.id}"
    mine, theirs = record.method, other.method
    if mine.name == theirs.name and (mine.plugin, mine.distribution) != (
        theirs.plugin,
        theirs.distribution,
    ):
        yield (
            f"the method name {mine.name} belongs to plugin {theirs.plugin} of "
            f"{theirs.distribution}, not to {mine.plugin} of {mine.distribution}"
        )
    if mine.reference and theirs.reference:
        return
    shared = _shared(record, other)
    if shared:
        yield (
            f"{shared} of {_name(record)} are those of {_name(other)}: a run is on the board "
            "under one name"
        )


def _shared(record: Record, other: Record) -> str | None:
    """What two records have in common that two runs cannot have; None if nothing."""
    assert record.distilled is not None
    assert other.distilled is not None
    same_method = (record.method.name, record.method.plugin, record.method.config) == (
        other.method.name,
        other.method.plugin,
        other.method.config,
    )
    same_set = record.distilled.sha256 == other.distilled.sha256
    if same_set and not same_method:
        return "the images"
    weights = {student.sha256: student.seed for student in other.students}
    for student in record.students:
        # The same weights come of the same set and the same seed, of nothing else.
        if student.sha256 in weights and not (same_set and weights[student.sha256] == student.seed):
            return "the students"
    if (
        record.track.id == other.track.id
        and not same_set
        and (_outcomes(record) == _outcomes(other))
    ):
        return "the outcomes"
    return None


def _outcomes(record: Record) -> list[object]:
    return [
        (student.clean, [(result.attack, result.eps, result.robust) for result in student.attacks])
        for student in record.students
    ]


def _name(record: Record) -> str:
    return f"{record.method.name} (seed {record.seed}, run {record.run_id})"

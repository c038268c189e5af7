"""What speaks against a run on a board: everything that can be told without running it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustdd_bench.board.admission.overlaps import copies_against
from robustdd_bench.board.admission.png import check_preview
from robustdd_bench.board.admission.strings import suspicious_texts
from robustdd_bench.board.admission.tensors import read_set
from robustdd_bench.config import config_class, config_to_dict, recorded_config
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.evaluation.sanity.meanings import CHECK_MEANINGS
from robustdd_bench.filenames import SET_FILE, SET_PICTURE
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import Track, load_track
from robustdd_bench.records.plan import plan_attacks
from robustdd_bench.records.record import Record
from robustdd_bench.seeds import Seeds

MAX_TEXTS = 5


def reasons_against(
    record: Record,
    folder: Path,
    registry: Registry | None = None,
    *,
    new: bool = False,
    published: bool = True,
) -> list[str]:
    """Why a run cannot be on a board, all reasons at once; empty if it can.

    Args:
        record: its record.
        folder: where its set and preview are.
        registry: what is installed, which its protocol is held against; None: it is not.
        new: whether its track has to be the one that is installed; on a board, an old version
            stays, and a track that is not installed.
        published: whether the folder is that of a board, with a preview and a reference's without
            its set.
    """
    if record.status != "complete":
        reason = record.failure.reason if record.failure else "unknown"
        return [f"the run failed: {reason}"]
    reasons = []
    if record.split != "test":
        reasons.append("it was evaluated on a validation split, which is for tuning")
    if record.given and (record.distilled is None or "imported" not in record.distilled.provenance):
        reasons.append(
            "a method of this benchmark made its set: publish the run of the method; for a set "
            "made elsewhere, evaluate the original file with --format"
        )
    failed = sorted({flag.name for flag in record.flags if not flag.passed})
    if failed:
        reasons.append(f"sanity checks failed: {', '.join(failed)}")
    reasons += copies_against(record.overlap)
    texts = suspicious_texts(record)
    reasons += texts[:MAX_TEXTS]
    if len(texts) > MAX_TEXTS:
        reasons.append(f"and {len(texts) - MAX_TEXTS} more such texts")
    reasons += _seeds(record)
    if registry is not None:
        reasons += protocol_reasons(record, registry, new=new)
    reasons += _files(record, folder, published)
    return reasons


def _files(record: Record, folder: Path, published: bool) -> Iterator[str]:
    """What speaks against the set and the preview."""
    found: DistilledSet | None = None
    try:
        found = set_of(record, folder, published=published)
    except UsageError as error:
        yield str(error)
        if not published:
            return
    # Publishing makes a preview of its own, where there is a set to make it of.
    if published or found is None:
        try:
            check_preview(folder / SET_PICTURE, record, found)
        except UsageError as error:
            yield str(error)


def set_of(record: Record, folder: Path, *, published: bool) -> DistilledSet | None:
    """The set of a run; None for a published reference, whose set is the training split.

    Raises:
        UsageError: there is none, or it is not the one the record speaks of.
    """
    path = folder / SET_FILE
    if record.method.reference and (published or not path.exists()):
        return None
    return read_set(path, record)


def _seeds(record: Record) -> Iterator[str]:
    """All methods are judged with the same seeds, which follow from seed and track."""
    seeds = Seeds(record.seed, record.track.family, record.method.name).shared()
    for student in record.students:
        if student.seed != seeds.seed("student-init", student.index) or any(
            result.seed != seeds.seed("attack", result.attack, student.index)
            for result in student.attacks
        ):
            yield (
                f"the seeds of student {student.index} are not those of seed {record.seed} on "
                f"{record.track.family}"
            )
            return


def protocol_reasons(record: Record, registry: Registry, *, new: bool) -> list[str]:
    """What speaks against the protocol of a record, given what is installed.

    Args:
        record: a complete record.
        registry: what is installed.
        new: whether the track has to be installed, in this version.
    """
    track = record.track
    if track.name not in registry.entries["tracks"]:
        known = ", ".join(registry.names("tracks"))
        line = (
            f"its track {track.name} is not installed here; install the plugin that registers it "
            f"(installed: {known or 'none'})"
        )
        return [line] if new else []
    try:
        installed = load_track(track.name, registry)
        if installed.version != track.version:
            told = (
                "judge the set again: robustdd evaluate RUN"
                if installed.version > track.version
                else "update robustdd-bench or the track's plugin"
            )
            line = f"its track is {track.id}, installed is {installed.id}; {told}"
            return [line] if new else []
        if installed.sha256() != record.track_sha256:
            return [
                f"its track is not the protocol that is installed as {track.id}: "
                f"{', '.join(_differences(track, installed))} differ"
            ]
        reasons = [*_suite(record, installed, registry), *_owner(record, registry)]
        return [*reasons, *_settings(record, registry)] if new else reasons
    except RobustDDError as error:
        return [f"its protocol cannot be checked: {error}"]


def _differences(one: Track, other: Track) -> list[str]:
    a, b = one.model_dump(mode="json"), other.model_dump(mode="json")
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def _suite(record: Record, track: Track, registry: Registry) -> Iterator[str]:
    """The attacks as they are installed, and every check."""
    for planned, attack in zip(plan_attacks(track, registry), record.attacks, strict=True):
        if planned.plugin != attack.plugin:
            yield (
                f"its attack {attack.name} is of plugin {attack.plugin}, the track's is of plugin "
                f"{planned.plugin}"
            )
        elif _json(dict(planned.config)) != _json(attack.config):
            yield f"its attack {attack.name} has other settings than the one that is installed"
    left_out = sorted(set(CHECK_MEANINGS) - {flag.name for flag in record.flags})
    if left_out:
        yield f"sanity checks were left out: {', '.join(left_out)}"


def _owner(record: Record, registry: Registry) -> Iterator[str]:
    """Nobody else's method goes by the name of one that is installed."""
    method = record.method
    entry = registry.entries["distillers"].get(method.name)
    if entry is None:
        if method.reference:
            yield (
                f"method {method.name} is not installed here; a reference row, whose set is not "
                "published, can only be taken from a method that is"
            )
        return
    distribution = registry.plugins[entry.plugin].distribution
    if (method.plugin, method.distribution) != (entry.plugin, distribution):
        yield (
            f"the method name {method.name} belongs to plugin {entry.plugin} of {distribution}, "
            f"not to {method.plugin} of {method.distribution}"
        )
    elif method.reference and not entry.load().reference:
        yield f"method {method.name} makes distilled sets; it is no reference"


def _settings(record: Record, registry: Registry) -> Iterator[str]:
    """Settings are as the installed method writes them, so that one method has one row."""
    entry = registry.entries["distillers"].get(record.method.name)
    if entry is None:
        return
    owner = f"method {record.method.name!r}"
    kind = config_class(entry.load(), owner)
    said = record.method.config
    wanted = config_to_dict(recorded_config(kind, said, owner))
    if _json(wanted) != _json(said):
        keys = sorted(k for k in wanted.keys() | said.keys() if wanted.get(k) != said.get(k))
        yield (
            f"its settings are not as the installed {owner} writes them ({', '.join(keys)}); run "
            "it again"
        )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

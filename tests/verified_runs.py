"""A run to verify, and records that tell it otherwise."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import torch
from small_runs import TRACK, _folder, plan_of, registry

from robustdd_bench.evaluation.outcomes import pack_bits, unpack_bits
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.records.record import Record, aggregate_students, make_record, write_record
from robustdd_bench.runs.pipeline import Finished, execute
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.verification.reevaluate import Reevaluation, reevaluate
from robustdd_bench.verification.setup import VerifyOptions

EXAMPLES = 179
"""Of the track's test split, more than the sanity checks look at."""


def track_file(folder: Path, *changes: tuple[str, str]) -> Path:
    """The small track with more test images, more epochs of its students, and a weak pgd."""
    text = TRACK.read_text()
    for old, new in (
        ('name = "fast"', 'name = "verified"'),
        ("test_fraction = 0.05", "test_fraction = 0.1"),
        ("epochs = 3", "epochs = 40"),
        ('[[attacks]]\nname = "fgsm"\n\n', ""),  # so that a longer pgd finds more
        ("steps = 2", "steps = 1"),
        *changes,
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "verified.toml"
    path.write_text(text)
    return path


@cache
def out() -> Path:
    """Where the track and its runs are."""
    folder = Path(_folder("verified")) / "verified"
    folder.mkdir()
    return folder


@cache
def track() -> Path:
    """The track's file."""
    return track_file(out())


@cache
def honest() -> Finished:
    """A run that ended. Do not write into its folder."""
    return execute(
        plan_of(track=str(track())), registry(), LocalExecutor(), out=out(),
        data_root=out(), reporter=NullReporter, witnesses=True,
    )  # fmt: skip


def verify(source: Path, *, witnesses: Path | None = None, **options) -> Reevaluation:
    """Evaluate it again."""
    chosen = VerifyOptions(**{"data_root": out(), "track": str(track())} | options)
    return reevaluate(source, registry(), chosen, reporter=NullReporter, witnesses=witnesses)


def laid(record: Record, folder: Path, source: Path | None = None) -> Path:
    """The folder with a record and the set of a run; no cells and no witnesses."""
    folder.mkdir(exist_ok=True)
    source = source or honest().folder
    shutil.copyfile(source / "distilled.safetensors", folder / "distilled.safetensors")
    write_record(folder / "record.json", record)
    return folder


def edited(record: Record, **fields) -> Record:
    """A record that is valid by itself, with other fields."""
    values = {name: getattr(record, name) for name in Record.model_fields} | fields
    del values["results_sha256"]
    if values["students"]:
        values["aggregates"] = aggregate_students(values["students"], values["track"])
    values["track_sha256"] = values["track"].sha256()
    values["run_id"] = Record.model_construct(**values).plan().run_id()
    return make_record(**values)


def retold(record: Record, change) -> Record:
    """A record whose outcomes are others, and everything else as it has to be.

    Args:
        record: of a track whose attacks are all on all examples.
        change: takes student, attack, eps, the robust bits and the clean ones; gives robust bits.
    """
    students = []
    for student in record.students:
        clean, results = unpack_bits(student.clean), []
        for found in student.attacks:
            robust = change(
                student.index, found.attack, found.eps, unpack_bits(found.robust), clean
            )
            told = {"robust": pack_bits(robust), "broken": int((clean & ~robust).sum())}
            results.append(found.model_copy(update=told))
        students.append(student.model_copy(update={"attacks": tuple(results)}))
    return edited(record, students=tuple(students))


def raised(record: Record, eps: float, count: int, students=(0, 1)) -> Record:
    """A record in which so many examples that fell at an eps of the ladder have not."""
    fell = {}
    for student in record.students:
        clean = unpack_bits(student.clean)
        stood = clean.clone()
        for found in student.attacks:
            if found.eps <= eps:
                stood &= unpack_bits(found.robust)
        fell[student.index] = (clean & ~stood).nonzero().squeeze(1)[:count]
        assert len(fell[student.index]) == count

    def change(index, attack, level, robust, clean):
        if index in students and level <= eps:
            robust[fell[index]] = True
        return robust

    return retold(record, change)


def lowered(record: Record, eps: float, count: int) -> Record:
    """A record in which so many more examples fell at an eps and beyond."""

    def change(index, attack, level, robust, clean):
        if level >= eps:
            robust[robust.nonzero().squeeze(1)[:count]] = False
        return robust

    return retold(record, change)


def shaken(function, size: float):
    """`train_student`, with noise on every weight: another machine, only more so."""

    def train(*args, **options):
        student = function(*args, **options)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in student.network.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(size * weight.std() * noise if weight.numel() > 1 else 0)
        return student

    return train

"""A whole run on a track whose students are taught: set, record, admission, reuse, board."""

from __future__ import annotations

import dataclasses
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from small_runs import TRACK, _folder, plan_of, registry, run

from robustdd_bench.board.admission.tensors import read_set
from robustdd_bench.board.divisions import division_of
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import SET_FILE
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.judging import teacher_network

TEACHER = ("teacher_depth=1", "teacher_width=4", "teacher_epochs=2", "teacher_attack_steps=1")
TEACHING = """
optimiser = "adamw"
schedule = "cosine"
own_rate = false

[students.mix]
kind = "cutmix"

[students.teaching]
temperature = 10.0
"""


def taught_track(folder: Path, more: str = "") -> Path:
    """The track of fast.toml with taught students, on which a method makes the same sets."""
    text = TRACK.read_text(encoding="utf-8")
    text = text.replace('name = "fast"\n', 'name = "fast-taught"\nbase = "fast"\n')
    text = text.replace("learning_rate = 0.01\n", f"learning_rate = 0.01{TEACHING}{more}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fast-taught.toml"
    path.write_text(text, encoding="utf-8")
    return path


@cache
def taught():
    """A run that ended. Do not write into its folder."""
    track = taught_track(Path(_folder("taught")) / "tracks")
    plan = plan_of("random-robust-labels", *TEACHER, track=str(track))
    return run(plan, Path(_folder("taught")) / "taught")


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(taught().folder, folder)
    return folder


def test_the_record_says_what_is_stored_and_the_set_is_admitted() -> None:
    finished = taught()
    record = read_record(finished.folder / "record.json")
    info = record.distilled.teacher
    assert (info.network, info.options) == ("convnet", {"depth": 1, "width": 4, "norm": "batch"})
    found = read_set(finished.folder / SET_FILE, record)
    assert found.teacher.sha256() == info.sha256
    assert found.teacher.stored_bytes == info.stored_bytes > 0
    assert division_of(record) == "teacher"
    assert record.track.students.teaching.temperature == 10.0


def test_a_teacher_that_was_changed_or_is_not_named_is_not_admitted(tmp_path) -> None:
    folder = copied(tmp_path)
    record, path = read_record(folder / "record.json"), folder / SET_FILE
    made = DistilledSet.load(path)
    weights = dict(made.teacher.weights)
    name = next(iter(weights))
    weights[name] = weights[name] + 0.01
    changed = dataclasses.replace(made.teacher, weights=weights)
    dataclasses.replace(made, teacher=changed).save(path)
    with pytest.raises(UsageError, match="is not the set the record speaks of"):
        read_set(path, record)
    dataclasses.replace(made, teacher=None).save(path)
    with pytest.raises(UsageError, match="does not hold the tensors the record speaks of"):
        read_set(path, record)
    unnamed = record.model_copy(
        update={"distilled": record.distilled.model_copy(update={"teacher": None})}
    )
    made.save(path)
    with pytest.raises(UsageError, match=r"larger than|does not hold the tensors"):
        read_set(path, unnamed)


def context_of(finished, tmp_path) -> RunContext:
    return RunContext(finished.record.plan(), registry(), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"depth": 1, "width": 5, "norm": "batch"}}, "other names or shapes"),
        ({"options": {"dept": 1}}, "options do not fit"),
        ({"network": "no-such"}, "no-such"),
        # What a stranger's options would allocate is not allocated.
        ({"options": {"depth": 1, "width": 65_536, "norm": "batch"}}, "other names or shapes"),
    ],
)
def test_a_teacher_that_cannot_be_built_is_one_line(fields, message, tmp_path) -> None:
    finished = taught()
    made = DistilledSet.load(finished.folder / SET_FILE)
    other = dataclasses.replace(made, teacher=dataclasses.replace(made.teacher, **fields))
    with pytest.raises(UsageError, match=message):
        teacher_network(context_of(finished, tmp_path), other)


def test_the_stored_teacher_gives_what_it_gave(tmp_path) -> None:
    finished = taught()
    made = DistilledSet.load(finished.folder / SET_FILE)
    context = context_of(finished, tmp_path)
    first, again = (teacher_network(context, made) for _ in range(2))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(x), again(x))
    assert first(x).softmax(1).max() > 0.11


def test_a_teacher_that_weighs_too_much_is_refused(tmp_path) -> None:
    track = taught_track(tmp_path, "max_bytes = 100\n")
    plan = plan_of("random-robust-labels", *TEACHER, track=str(track))
    with pytest.raises(RunFailedError, match=r"teacher weighs .* the track allows 100 B"):
        run(plan, tmp_path / "out")


def test_on_a_plain_track_the_same_set_is_taught_by_its_own_labels(tmp_path) -> None:
    plain = run(plan_of("random-robust-labels", *TEACHER), tmp_path / "plain")
    assert plain.record.distilled.sha256 == taught().record.distilled.sha256
    assert division_of(plain.record) == "hard"
    random = run(plan_of("random"), tmp_path / "random")
    # The images of `random`, so the students of `random`.
    assert [s.sha256 for s in plain.record.students] == [s.sha256 for s in random.record.students]
    assert [s.sha256 for s in plain.record.students] != [s.sha256 for s in taught().record.students]

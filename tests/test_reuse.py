"""A finished run evaluated again under another version of its track, from its set on."""

from __future__ import annotations

import json
import shutil

import pytest
from pydantic import model_validator
from small_runs import (
    TRACK,
    copy_of,
    example,
    files,
    plan_of,
    record_json,
    registry,
    run,
    without_costs,
)

from robustdd_bench.cli.main import main
from robustdd_bench.config import settings
from robustdd_bench.errors import UsageError
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.runs.reuse import plan_again


def second_version(tmp_path, *changes):
    """The small track, version 2."""
    text = TRACK.read_text().replace("version = 1", "version = 2")
    for old, new in changes or [("{ steps = 2 }", "{ steps = 4 }")]:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "fast.toml"
    path.write_text(text)
    return path


def again(source, track, out, **options):
    plan, record = plan_again(
        registry(), source, track=None if track is None else str(track), threads=1, device="cpu"
    )
    return execute(
        plan, registry(), LocalExecutor(), out=out, data_root=out, reporter=NullReporter,
        source=(source, record), **options,
    )  # fmt: skip


def results(record):
    """Everything but costs and the command, which can be written in several ways."""
    fields = without_costs(record)
    del fields["command"], fields["results_sha256"]
    return fields


@pytest.mark.parametrize("method", ["mtt", "random", "full"])
def test_the_record_is_that_of_a_run_from_the_start(method, tmp_path) -> None:
    track = second_version(tmp_path)
    source = example(method)
    found = again(source.folder, track, tmp_path / "a")
    assert not (tmp_path / "a" / "store").exists()  # no expert was trained
    fresh = run(plan_of(method, track=str(track)), tmp_path / "b")
    assert results(found.record) == results(fresh.record)
    assert found.record.run_id != source.record.run_id
    origin = found.record.costs.adopted
    assert (origin.run_id, origin.results_sha256) == (
        source.record.run_id,
        source.record.results_sha256,
    )
    kept = [s for s in source.record.costs.stages if s.stage in ("experts", "distill")]
    assert list(found.record.costs.stages[: len(kept)]) == kept
    assert {s.stage for s in found.record.costs.stages} == {
        s.stage for s in fresh.record.costs.stages
    }
    assert fresh.record.costs.adopted is None
    assert "adopted" not in record_json(fresh.folder)["costs"]


def test_a_set_taken_over_twice_names_the_run_that_made_it(tmp_path) -> None:
    first = again(example().folder, second_version(tmp_path), tmp_path / "a")
    third = second_version(tmp_path, ("{ steps = 2 }", "{ steps = 5 }"))
    second = again(first.folder, third, tmp_path / "b")
    assert second.record.costs.adopted.run_id == example().record.run_id


def test_it_goes_on_where_it_was_cut_and_is_found_again(tmp_path) -> None:
    track = second_version(tmp_path)
    done = again(example().folder, track, tmp_path)
    for path in (done.folder / "record.json", *(done.folder / "cells").glob("attack-pgd-1*")):
        path.unlink()
    cut = again(example().folder, track, tmp_path)
    assert not cut.reused
    assert cut.record.results_sha256 == done.record.results_sha256
    assert again(example().folder, track, tmp_path).reused


def test_a_set_that_was_lost_since_is_made_by_the_method(tmp_path) -> None:
    track = second_version(tmp_path)
    done = again(example("mtt").folder, track, tmp_path)
    (done.folder / "distilled.safetensors").unlink()
    made = run(plan_of("mtt", track=str(track)), tmp_path)
    assert made.record.costs.adopted is None
    assert made.record.students == done.record.students


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("ipc = 2", "ipc = 3", "data differ"),
        ("width = 4", "width = 5", "network differ"),
        ("headline = 0.10", "headline = 0.05", "threat.headline differ"),
        ("batch_size = 8", 'batch_size = 8\naugmentation = "crop"', "students.augmentation differ"),
        ('name = "fast"', 'name = "other"', "base, whose name is in the seeds"),
    ],
)
def test_a_track_under_which_the_set_would_be_another_is_refused(old, new, line, tmp_path) -> None:
    track = second_version(tmp_path, (old, new))
    with pytest.raises(UsageError, match=line):
        plan_again(registry(), example().folder, track=str(track))


def test_a_set_that_is_not_the_records_is_refused(tmp_path) -> None:
    folder = copy_of(example(), tmp_path)
    shutil.copyfile(
        example("mtt").folder / "distilled.safetensors", folder / "distilled.safetensors"
    )
    with pytest.raises(UsageError, match="is not that of its record"):
        plan_again(registry(), folder, track=str(TRACK))


def test_a_published_reference_row_is_to_be_run_anew(tmp_path) -> None:
    folder = copy_of(example("full"), tmp_path)
    (folder / "distilled.safetensors").unlink()
    with pytest.raises(UsageError, match="run it anew: robustdd run --method full"):
        plan_again(registry(), folder, track=str(TRACK))


def test_a_method_that_has_changed_since_is_refused(tmp_path, monkeypatch) -> None:
    folder = copy_of(example("mtt"), tmp_path)
    kind = registry().get("distillers", "mtt").load()

    @settings
    class Other(kind.Config):
        @model_validator(mode="after")
        def _seven(self):
            object.__setattr__(self, "experts", 7)
            return self

    monkeypatch.setattr(kind, "Config", Other)
    with pytest.raises(UsageError, match="another version of method 'mtt'"):
        plan_again(registry(), folder, track=str(TRACK))


def test_the_command_line_takes_the_folder_of_a_run(tmp_path, capsys) -> None:
    track = second_version(tmp_path)
    call = ["evaluate", str(example().folder), "--out", str(tmp_path), "--track", str(track)]
    assert main([*call, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["track"]) == ("random", "fast@2")
    folder = tmp_path / "fast" / "random" / found["run_id"]
    assert "adopted.json" in files(folder)
    command = "robustdd run --method random --track record.json"
    assert record_json(folder)["command"].startswith(command)
    assert main(["show", "run", str(folder)]) == 0
    assert f"taken from run {example().record.run_id}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "line"),
    [(["--seed", "3"], "the seed is the run's"), (["--validate"], "the split is the run's")],
)
def test_what_the_run_decides_cannot_be_given(option, line, tmp_path, capsys) -> None:
    assert main(["evaluate", str(example().folder), *option, "--out", str(tmp_path)]) == 2
    assert line in capsys.readouterr().err


def test_a_folder_without_a_run_is_one_clear_line(tmp_path, capsys) -> None:
    assert main(["evaluate", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "no file" in err
    assert err.count("\n") == 1

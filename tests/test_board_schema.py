"""leaderboard.json: its schema, and what rows say of cost, checks, marks and people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from made_up import made_up, put, share
from small_runs import example

from robustdd_bench.board.build import build
from robustdd_bench.board.divisions import MARKS
from robustdd_bench.board.publish import publish
from robustdd_bench.board.schema import board_schema
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.sanity.meanings import CHECK_MEANINGS
from robustdd_bench.files import write_json
from robustdd_bench.records.parts import Commit
from robustdd_bench.records.record import Record, make_record

FIGURES = {
    "reported_version": 1,
    "title": "A paper",
    "link": "https://example.org/paper",
    "figures": [
        {
            "method": "theirs",
            "dataset": "cifar10",
            "ipc": 10,
            "clean": 0.5,
            "robust": [{"norm": "Linf", "eps": 0.03, "attack": "PGD", "accuracy": 0.25}],
        }
    ],
}


def bent(record: Record, **changes) -> Record:
    values = {name: getattr(record, name) for name in Record.model_fields} | changes
    del values["results_sha256"]
    return make_record(**values)


@pytest.fixture
def board(tmp_path):
    for method in ("random", "full"):
        publish(example(method).folder, tmp_path)
    return tmp_path


def test_the_board_fits_its_schema_and_the_committed_one_is_it(board) -> None:
    (board / "reported").mkdir()
    write_json(board / "reported" / "paper.json", FIGURES)
    build(board)
    content = json.loads((board / "leaderboard.json").read_text())
    validator = jsonschema.Draft202012Validator(board_schema())
    validator.check_schema(board_schema())
    assert list(validator.iter_errors(content)) == []
    broken = json.loads(json.dumps(content))
    broken["tracks"][0]["rows"][0]["extra"] = 1
    assert list(validator.iter_errors(broken))
    committed = Path(__file__).parent.parent / "leaderboard"
    schema = json.loads((committed / "leaderboard.schema.json").read_text())
    published = json.loads((committed / "leaderboard.json").read_text())
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(published)) == []


def test_a_row_tells_its_cost_and_its_files(board) -> None:
    (track,) = build(board).tracks
    row, reference = track.rows
    stages = {stage.stage: stage for stage in example("random").record.costs.stages}
    (run,) = row.runs
    assert run.cost.distillation_s == stages["distill"].wall_s
    judged = sum(s.wall_s for name, s in stages.items() if name not in ("experts", "distill"))
    assert run.cost.evaluation_s == pytest.approx(judged)
    assert run.cost.peak_bytes == max(stage.peak_bytes for stage in stages.values()) > 0
    assert (run.cost.device, row.cost) == ("cpu", run.cost)
    assert (board / run.preview).is_file()
    assert (board / run.set_file).is_file()
    assert reference.runs[0].set_file is None
    assert track.evaluation_examples == example("random").record.data.evaluation_examples
    assert row.command == example("random").record.command_to_repeat


def test_a_mean_cost_is_over_runs_and_a_peak_is_the_largest(tmp_path) -> None:
    record = made_up("lead", share(60))
    costs = record.costs
    dearer = costs.model_copy(
        update={
            "stages": tuple(
                stage.model_copy(
                    update={"wall_s": stage.wall_s + 10, "peak_bytes": stage.peak_bytes * 2}
                )
                for stage in costs.stages
            )
        }
    )
    put(record, tmp_path)
    put(bent(made_up("lead", share(60), seed=1), costs=dearer), tmp_path)
    (row,) = build(tmp_path).tracks[0].rows
    cheap, dear = (run.cost for run in row.runs)
    assert row.seeds == (0, 1)
    assert row.cost.distillation_s == pytest.approx(
        (cheap.distillation_s + dear.distillation_s) / 2
    )
    assert dear.distillation_s == pytest.approx(cheap.distillation_s + 10)
    assert row.cost.peak_bytes == dear.peak_bytes == 2 * cheap.peak_bytes


def test_checks_are_counted_over_all_students_of_a_row_and_explained(tmp_path) -> None:
    for seed in (0, 1):
        put(made_up("lead", share(60), seed=seed), tmp_path)
    (row,) = build(tmp_path).tracks[0].rows
    students = example("random").record.track.students.count
    assert {(check.passed, check.students) for check in row.checks} == {(2 * students,) * 2}
    # Every check there is has a meaning, and every meaning is of a check.
    assert {check.name for check in row.checks} == set(CHECK_MEANINGS)
    assert all(check.meaning for check in row.checks)


def test_rows_bear_the_marks_that_hold(tmp_path) -> None:
    plain = made_up("plain", share(60))
    shape = {
        "learning_rate": None,
        "augmentation": None,
        "preprocessing": None,
        "pixel_min": 0.0,
        "pixel_max": 1.0,
    }
    commit = {"commit": None, "processes": ()}
    costs = plain.costs.model_copy(update=commit)
    put(
        bent(
            plain,
            distilled=plain.distilled.model_copy(update=shape),
            costs=costs,
            overlap=None,
        ),
        tmp_path,
    )
    put(
        bent(
            made_up("plain", share(60), seed=1),
            distilled=plain.distilled.model_copy(update=shape),
            costs=costs,
            overlap=None,
        ),
        tmp_path,
    )
    (row,) = build(tmp_path).tracks[0].rows
    assert row.marks == ()

    odd = made_up("odd", share(50), labels="soft")
    method = odd.method.model_copy(update={"distribution": "theirs"})
    fields = {name: getattr(odd, name) for name in Record.model_fields}
    fields["method"] = method
    del fields["results_sha256"]
    fields["run_id"] = Record.model_construct(**fields).plan().run_id()
    changes = {"learning_rate": 0.1, "augmentation": "flip", "pixel_max": 1.5}
    fields["distilled"] = odd.distilled.model_copy(update=changes)
    dirty = Commit(sha="0" * 40, dirty=True)
    fields["costs"] = odd.costs.model_copy(update={"commit": dirty})
    put(make_record(**fields), tmp_path)
    row = next(r for r in build(tmp_path).tracks[0].rows if r.method == "odd")
    assert set(row.marks) == {
        "soft labels",
        "own rate",
        "own augmentation",
        "beyond pixels",
        "one seed",
        "other plugin",
        "changed code",
        "training images",
    }
    assert set(row.marks) <= set(MARKS)


def test_a_rows_name_for_links_depends_on_its_configuration_alone(tmp_path) -> None:
    put(made_up("lead", share(60)), tmp_path)
    (before,) = build(tmp_path).tracks[0].rows
    put(made_up("lead", share(60), seed=1), tmp_path)
    put(made_up("lead", share(50), x=1), tmp_path)
    first, second = build(tmp_path).tracks[0].rows
    assert first.id == before.id
    assert second.id != first.id
    assert {first.id[:5], second.id[:5]} == {"lead-"}


def test_who_ran_it_is_shown_and_is_held_to_a_form(board) -> None:
    run = build(board).tracks[0].rows[0].runs[0]
    assert run.submission is None
    path = board / run.folder / "submission.json"
    who = {"submission_version": 1, "by": "A. Researcher", "link": "https://example.org/~a/x?y=1#z"}
    write_json(path, who)
    found = build(board).tracks[0].rows[0].runs[0].submission
    assert (found.by, found.paper) == ("A. Researcher", None)
    for change, key in (
        ({"link": "javascript:alert(1)"}, "link"),
        ({"link": 'https://example.org/"onmouseover='}, "link"),
        ({"by": "two\nlines"}, "by"),
        ({"by": "turned \u202e round"}, "by"),
        ({"by": "x" * 201}, "by"),
        ({"licence": "<b>"}, "licence"),
        ({"rank": 1}, "rank"),
        ({"submission_version": 2}, "submission_version"),
    ):
        write_json(path, who | change)
        with pytest.raises(UsageError, match=rf"not a valid submission: {key}"):
            build(board)
    path.write_bytes(b" " * 20_000)
    with pytest.raises(UsageError, match="larger than 16 KiB"):
        build(board)


def test_reported_figures_are_read_apart_and_never_become_rows(board) -> None:
    rows = build(board).tracks[0].rows
    (board / "reported").mkdir()
    path = board / "reported" / "paper.json"
    write_json(path, FIGURES)
    content = build(board)
    assert content.tracks[0].rows == rows
    assert content.reported["paper"].figures[0].robust[0].accuracy == 0.25
    for change, key in (
        ({"figures": []}, "figures"),
        ({"link": "http://example.org"}, "link"),
        ({"figures": [FIGURES["figures"][0] | {"clean": 50.0}]}, "figures.0.clean"),
        ({"figures": [{"method": "m", "dataset": "d", "ipc": 1, "clean": None}]}, "figures.0"),
    ):
        write_json(path, FIGURES | change)
        with pytest.raises(UsageError, match=f"not a file of reported figures: {key}"):
            build(board)
    shutil.move(path, path.with_name("A b.json"))
    with pytest.raises(UsageError, match="its name must be"):
        build(board)


def test_a_stranger_cannot_name_the_hardware_at_length(tmp_path) -> None:
    record = made_up("lead", share(60))
    environment = record.costs.environment | {"processor": "x" * 5000, "accelerators": "none"}
    costs = record.costs.model_copy(update={"environment": environment})
    put(bent(record, costs=costs), tmp_path)
    (row,) = build(tmp_path).tracks[0].rows
    assert row.cost.hardware == "x" * 100

"""Estimates: from records of like runs, with what is unlike about them; else none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_runs import copy_of, example, plan_of, run
from sweeps import Counting, planned, swept

from robustdd_bench.files import write_json
from robustdd_bench.sweeps.estimate import Estimate, History, estimate
from robustdd_bench.text.terminal import duration_text, rate_text


def seconds(record, **factors):
    """What a run took, some stages scaled."""
    return sum(s.wall_s * factors.get(s.stage, 1.0) for s in record.costs.stages)


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    """An output folder with a run of method random, and one of mtt."""
    out = tmp_path_factory.mktemp("past")
    copy_of(example("random"), out)
    copy_of(example("mtt"), out)
    return out


def test_another_seed_costs_what_the_mean_of_its_like_did(past, tmp_path):
    folder = copy_of(example("random", seed=1), tmp_path / "more").parents[2]
    found = estimate(plan_of("random", seed=5), History([past, folder]), tmp_path)
    both = [seconds(example("random", seed=seed).record) for seed in (0, 1)]
    assert found == Estimate(pytest.approx(sum(both) / 2), 2, ())
    assert str(found) == "2 runs"


def test_a_record_that_lies_in_two_folders_counts_once(past, tmp_path):
    found = estimate(plan_of("random", seed=5), History([past, past]), tmp_path)
    assert found is not None
    assert found.records == 1


def test_other_settings_machine_and_threads_are_told_and_used_only_for_want_of_better(
    past, tmp_path
):
    history = History([past])
    assert str(estimate(plan_of("mtt", seed=5), history, tmp_path)) == "1 run"
    other = replace(plan_of("mtt", "iterations=4"), threads=7)
    assert estimate(other, history, tmp_path).differs == ("settings", "threads")
    elsewhere = History([past], machine={"processor": "another", "accelerators": []})
    found = estimate(other, elsewhere, tmp_path)
    assert str(found) == "1 run, other settings, machine, threads"
    assert found.wall_s == pytest.approx(seconds(example("mtt").record))


def test_the_validation_split_is_scaled_by_its_images(past, tmp_path):
    record = example("mtt").record
    plan = plan_of("mtt", validate=True)
    share = plan.track.data.validation_fraction
    images = share * record.data.train_examples / record.data.evaluation_examples
    found = estimate(plan, History([past]), tmp_path)
    assert found.differs == ("split",)
    assert found.wall_s == pytest.approx(
        seconds(record, experts=1 - share, attacks=images, sanity=images)
    )
    judged = example("random", validate=True)
    assert judged.record.data.evaluation_examples == pytest.approx(
        share * example("random").record.data.train_examples, abs=10
    )


def test_a_validation_record_does_not_tell_what_the_test_split_costs(tmp_path):
    copy_of(example("random", validate=True), tmp_path)
    assert estimate(plan_of("random"), History([tmp_path]), tmp_path) is None
    assert estimate(plan_of("random", validate=True, seed=3), History([tmp_path]), tmp_path)


def test_nothing_is_guessed_from_another_method_track_or_device(past, tmp_path):
    history = History([past, tmp_path / "missing"])
    assert estimate(plan_of("herding"), history, tmp_path) is None
    assert estimate(plan_of("random", track="digits-ipc1"), history, tmp_path) is None
    assert estimate(replace(plan_of("random"), device="cuda"), history, tmp_path) is None
    track = plan_of("random").track
    other = replace(plan_of("random"), track=track.model_copy(update={"version": 2}))
    assert estimate(other, history, tmp_path) is None


def test_what_is_no_complete_record_is_passed_over(tmp_path):
    sweep = planned(tmp_path, 'methods = "raising"')
    swept(sweep, tmp_path)
    plan = sweep.runs[0].plan
    assert json.loads((plan.folder(tmp_path) / "record.json").read_text())["status"] == "failed"
    assert estimate(plan, History([tmp_path]), tmp_path) is None
    folder = copy_of(example("random"), tmp_path)
    fields = json.loads((folder / "record.json").read_text())
    fields["costs"]["stages"][0]["wall_s"] = -1e9
    write_json(folder / "record.json", fields)
    assert estimate(plan_of("random", seed=1), History([tmp_path]), tmp_path) is None


def test_what_an_interrupted_run_has_done_is_taken_off(past, tmp_path):
    plan = plan_of("random", seed=9)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, executor=Counting(last=3))
    whole = estimate(plan, History([past]), tmp_path / "empty")
    left = estimate(plan, History([past]), tmp_path)
    spent = [json.loads(p.read_text())["wall_s"] for p in tmp_path.rglob("*.cell.json")]
    assert len(spent) == 3
    assert left.wall_s == pytest.approx(max(0.0, whole.wall_s - sum(spent)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1.7 min"),
        (596, "9.9 min"),
        (600, "10 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (172_700, "47 h 58 min"),
        (180_000, "2 d 02 h"),
    ],
)
def test_a_time_is_written_as_people_read_it(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.0123"), (0.5, "0.5"), (12.345, "12.3"), (99.96, "100"),
     (1234.5, "1,234"), (270_000.0, "270,000")],
)  # fmt: skip
def test_a_rate_has_three_digits_or_whole_numbers(value, text):
    assert rate_text(value, "images") == f"{text} images/s"

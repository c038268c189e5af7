"""Sweeps: what exists is left, what was cut goes on, a failure or another process stops nothing."""

from __future__ import annotations

import pytest
from small_runs import TRACK, copy_of, example, plan_of, registry, run, without_costs
from sweeps import Counting, held, no_pause, planned, statuses, swept, write

from robustdd_bench.errors import PluginError
from robustdd_bench.sweeps.plan import plan_sweep
from robustdd_bench.sweeps.run import POLL_S

TWO = 'methods = "random"\nseeds = [0, 1]'


@pytest.fixture
def out(tmp_path):
    """An output folder that holds the run of method random with seed 0."""
    copy_of(example("random"), tmp_path / "out")
    return tmp_path / "out"


def test_what_exists_is_left_and_the_rest_is_done(out, tmp_path):
    executor = Counting()
    result = swept(planned(tmp_path, TWO), out, executor, pause=no_pause)
    assert statuses(result) == ["done before", "done"]
    assert {cell.split("/")[1] for cell in executor.cells} == {"1"}
    before, done = result.outcomes
    assert before.record == example("random").record
    assert done.record is not None
    assert done.record.seed == 1
    assert done.wall_s == pytest.approx(sum(s.wall_s for s in done.record.costs.stages))
    assert statuses(swept(planned(tmp_path, TWO), out)) == ["done before", "done before"]


def test_a_damaged_run_is_done_again(out, tmp_path):
    sweep = planned(tmp_path, 'methods = "random"')
    folder = sweep.runs[0].plan.folder(out)
    (folder / "record.json").write_text("{}")
    assert sweep.runs[0].found(out) == "started"
    result = swept(sweep, out)
    assert statuses(result) == ["done"]
    assert without_costs(result.outcomes[0].record) == without_costs(example("random").record)


def test_an_interrupted_sweep_says_how_far_it_is_and_goes_on_where_it_was(out, tmp_path):
    text = 'methods = ["random", "raising"]\nseeds = [0, 1]'
    sweep = planned(tmp_path, text)
    with pytest.raises(KeyboardInterrupt) as caught:
        swept(sweep, out, Counting(last=2))
    folder = sweep.runs[1].plan.folder(out)
    assert str(caught.value) == (
        f"1 of 4 runs are done; interrupted; kept in {folder}: distill 1/1, students 1/2. "
        "Repeat the command to resume."
    )
    assert [run.found(out) for run in sweep.runs] == ["done", "started", "new", "new"]
    executor = Counting()
    assert statuses(swept(sweep, out, executor)) == ["done before", "done", "failed", "failed"]
    assert "random/1/distill" not in executor.cells
    assert "random/1/students/0" not in executor.cells
    assert "random/1/students/1" in executor.cells


def test_an_interruption_between_two_runs_counts_what_failed(tmp_path):
    sweep = planned(tmp_path, 'methods = ["raising", "half"]')
    lock = held(sweep.runs[1].plan.folder(tmp_path))

    def interrupt(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"0 of 2 runs are done, 1 failed; inter"):
        swept(sweep, tmp_path, pause=interrupt)
    lock.release()


def test_a_failure_does_not_stop_the_rest_and_is_not_tried_again_unless_asked(out, tmp_path):
    sweep = planned(tmp_path, 'methods = ["raising", "half", "random"]')
    result = swept(sweep, out)
    assert statuses(result) == ["failed", "failed", "done before"]
    assert result.outcomes[0].reason == (
        "plugin 'crooks': method 'raising' failed: ZeroDivisionError: two lines of reasons"
    )
    executor = Counting()
    again = swept(sweep, out, executor)
    assert statuses(again) == ["failed", "failed", "done before"]
    assert again.outcomes[1].reason == result.outcomes[1].reason
    assert executor.cells == []
    log = sweep.runs[0].plan.folder(out) / "run.log"
    tried = log.read_text().count("two lines\nof reasons")
    assert statuses(swept(sweep, out, retry_failed=True)) == ["failed", "failed", "done before"]
    assert log.read_text().count("two lines\nof reasons") == 2 * tried


def test_data_that_are_missing_fail_the_runs_on_their_track_alone(out, tmp_path):
    both = f'tracks = ["{TRACK}", "cifar10-ipc1"]\n'
    path = write(tmp_path, 'methods = "random"', tracks=both)
    result = swept(plan_sweep(path, registry(), device="cpu"), out)
    assert statuses(result) == ["done before", "failed"]
    assert "CIFAR10" in result.outcomes[1].reason


def test_a_folder_that_cannot_be_made_fails_its_run_alone(out, tmp_path):
    sweep = planned(tmp_path, 'methods = ["spy", "random"]')
    folder = sweep.runs[0].plan.folder(out)
    folder.parent.write_text("a file where a folder should be")
    result = swept(sweep, out)
    assert statuses(result) == ["failed", "done before"]
    assert result.outcomes[0].reason.startswith(f"cannot make {folder}: ")


def test_a_log_that_cannot_be_written_fails_its_run_alone(tmp_path):
    sweep = planned(tmp_path, TWO)
    folder = sweep.runs[0].plan.folder(tmp_path)
    (folder / "run.log").mkdir(parents=True)
    result = swept(sweep, tmp_path)
    assert statuses(result) == ["failed", "done"]
    assert result.outcomes[0].reason.startswith(f"cannot write {folder / 'run.log'}: ")


def test_a_lock_that_cannot_be_had_is_a_failure_and_not_waited_for(out, tmp_path):
    sweep = planned(tmp_path, 'methods = ["spy", "random"]')
    folder = sweep.runs[0].plan.folder(out)
    (folder / ".lock").mkdir(parents=True)
    assert sweep.runs[0].found(out) == "new"
    result = swept(sweep, out, pause=no_pause)
    assert statuses(result) == ["failed", "done before"]
    assert result.outcomes[0].reason.startswith(f"cannot write into {folder}: ")


def test_a_run_of_another_process_is_left_and_looked_at_again_in_the_end(out, tmp_path):
    sweep = planned(tmp_path, TWO)
    lock = held(sweep.runs[0].plan.folder(out))
    assert sweep.runs[0].found(out) == "running"
    left = swept(sweep, out, wait=False, pause=no_pause)
    assert statuses(left) == ["busy", "done"]
    pauses = []

    def other_ends(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            lock.release()

    assert statuses(swept(sweep, out, pause=other_ends)) == ["done before", "done before"]
    assert pauses == [POLL_S, POLL_S]


def test_a_run_whose_process_died_is_taken_over(tmp_path):
    sweep = planned(tmp_path, 'methods = "random"')
    lock = held(sweep.runs[0].plan.folder(tmp_path))
    result = swept(sweep, tmp_path, pause=lambda seconds: lock.release())
    assert statuses(result) == ["done"]


def test_what_another_process_has_just_tried_again_is_not_tried_a_third_time(tmp_path):
    sweep = planned(tmp_path, 'methods = "half"')
    plan = sweep.runs[0].plan
    assert statuses(swept(sweep, tmp_path)) == ["failed"]
    lock = held(plan.folder(tmp_path))
    log = plan.folder(tmp_path) / "run.log"

    def other_fails(seconds):
        lock.release()
        with pytest.raises(PluginError):
            run(plan, tmp_path)

    swept(sweep, tmp_path, retry_failed=True, pause=other_fails)
    assert log.read_text().count("experts: failed") == 2


def test_a_lock_that_is_taken_between_the_look_and_the_run_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("robustdd_bench.sweeps.run.is_locked", lambda folder, unsure: False)
    sweep = planned(tmp_path, 'methods = "random"')
    lock = held(plan_of("random").folder(tmp_path))
    assert statuses(swept(sweep, tmp_path, wait=False)) == ["busy"]
    lock.release()

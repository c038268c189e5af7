"""The queue on a shared folder: who takes a cell, who is taken for dead, and what is heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import robustdd
from small_runs import TRACK

from robustdd_bench.executors import Cell, CellFailedError, Job, Process, ReturnedCellError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.link import LostWorkerError
from robustdd_bench.runs.execution.queue import driver as driver_module
from robustdd_bench.runs.execution.queue.driver import QueueDriver
from robustdd_bench.runs.execution.queue.folder import QueueFolder
from robustdd_bench.runs.execution.queue.holder import is_gone, this_process
from robustdd_bench.runs.execution.queue.presence import Drivers
from robustdd_bench.runs.planned import message_of

ELSEWHERE = {"host": "other", "machine": "other", "pid": 1, "started": "1", "job": "12_3"}
HERE = {"torch": "1.0"}


# --- who takes a cell --------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_many_contenders_one_takes_a_cell(links, tmp_path, monkeypatch) -> None:
    if not links:

        def link(*_):
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", link)
    queue = QueueFolder(tmp_path)
    queue.make()
    for number in range(20):
        queue.post(number, "key", {"cell": str(number)})
    won = []

    def contend(me):
        won.extend((one.name, me) for one in queue.attempts() if one.take({"pid": me}))

    threads = [threading.Thread(target=contend, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in won) == [attempt.name for attempt in queue.attempts()]
    holders = {attempt.name: attempt.lease()[0]["pid"] for attempt in queue.attempts()}
    assert holders == dict(won)
    assert all(attempt.files() == {"request.json", "lease.jsonl"} for attempt in queue.attempts())


def test_what_was_removed_is_not_made_again(tmp_path) -> None:
    queue = QueueFolder(tmp_path)
    queue.make()
    attempt = queue.post(0, "key", {"cell": "distill"})
    assert attempt.take(this_process())
    assert attempt.beat(1)
    attempt.cancel()
    assert not attempt.beat(2), "it is not wanted any more"
    queue.remove(attempt)
    for write in (
        lambda: attempt.beat(3),
        lambda: attempt.tell(b"{}\n"),
        lambda: attempt.end({"returned": ""}),
    ):
        with pytest.raises(OSError, match="No such file"):
            write()
    assert not attempt.take(this_process())
    assert not attempt.path.exists()


def test_a_process_is_gone_when_it_has_ended_here_and_never_by_what_another_machine_says() -> None:
    assert not is_gone(this_process())
    code = (
        "import json; from robustdd_bench.runs.execution.queue.holder import this_process; "
        "print(json.dumps(this_process()))"
    )
    ended = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert is_gone(ended)
    assert is_gone(this_process() | {"started": "1"}), "the number belongs to another process now"
    assert not is_gone(ended | {"machine": "another"})
    assert not is_gone(ended | {"machine": ""})


def test_the_job_of_a_scheduler_is_told(monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PBS_JOBID", "7.host")
    assert this_process()["job"] == "7.host"
    monkeypatch.setenv("SLURM_JOB_ID", "124")
    assert this_process()["job"] == "124"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "123")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert this_process()["job"] == "123_1"


# --- the process that plans --------------------------------------------------------------------


class Heard(list):
    def __call__(self, cell, event):
        self.append((cell.name, event))


@pytest.fixture
def drive(tmp_path):
    """Makes processes that plan, which are stopped in the end."""
    made = []

    def make(lease_s=60.0, **options):
        made.append(QueueDriver(tmp_path / "out", lease_s=lease_s, **options))
        return made[-1]

    yield make
    for one in made:
        one._stop = True
        one._wake.set()
        one._thread.join()


def cell_of(tmp_path, name="students/0"):
    output = tmp_path / "out" / name.replace("/", "-")
    output.parent.mkdir(exist_ok=True)
    return Cell(stage=name.partition("/")[0], name=name, output=output, scope="run 1")


def job_of(heard=None, **message):
    message = {"out": "", "fingerprint": HERE, "plan": {}} | message
    events = Heard() if heard is None else heard
    return Job(run_id="1" * 12, message=message, events=events, run_here=lambda _: None)


def taken(driver, holder=ELSEWHERE):
    """The one attempt in the queue, taken."""
    (attempt,) = driver.queue.attempts()
    assert attempt.take(holder)
    return attempt


def signed(cell):
    """A receipt, as the worker writes it."""
    cell.output.write_text("done")
    process = {"harness": "1", "torch": "2", "commit": None, "host": "0" * 12, "device": "CPU"}
    return cell.sign(
        wall_s=1.0, peak_bytes=1, items=1, unit="images", process=Process.model_validate(process)
    )


def result_of(future):
    return future.exception(timeout=20)


def test_a_live_worker_keeps_its_cell_and_a_silent_one_loses_it(tmp_path, drive) -> None:
    driver = drive(lease_s=1.0)
    future = driver.submit(cell_of(tmp_path), job_of())
    attempt = taken(driver)
    for beat in range(8):
        time.sleep(0.25)
        assert attempt.beat(beat)
    assert not future.done(), "twice the lease, and it beats"
    error = result_of(future)
    assert isinstance(error, LostWorkerError)
    assert "no sign of life for 1 s (other, process 1, job 12_3)" in str(error)
    assert attempt.files() is None, "the worker sees it"
    again = driver.submit(cell_of(tmp_path), job_of())
    (second,) = driver.queue.attempts()
    assert (second.key, second.name) != (attempt.key, attempt.name)
    assert second.key == attempt.key
    assert not again.done()


@pytest.mark.parametrize("why", ["its process has ended here", "its job is gone", "removed"])
def test_a_worker_that_is_known_to_be_gone_loses_its_cell_at_once(why, tmp_path, drive) -> None:
    def gone(holder, seen):
        assert seen <= time.monotonic()
        return "its job has ended" if why == "its job is gone" else ""

    driver = drive(gone=gone)
    future = driver.submit(cell_of(tmp_path), job_of())
    here = this_process() | {"pid": os.getpid(), "started": "1"}
    attempt = taken(driver, here if why == "its process has ended here" else ELSEWHERE)
    if why == "removed":
        driver.queue.remove(attempt)
    error = result_of(future)
    assert isinstance(error, LostWorkerError)
    assert {"removed": "removed from", "its job is gone": "its job has ended"}.get(
        why, "the worker has ended"
    ) in str(error)


def test_events_are_heard_once_in_order_and_whole(tmp_path, drive) -> None:
    heard = Heard()
    driver = drive()
    cell = cell_of(tmp_path)
    future = driver.submit(cell, job_of(heard))
    attempt = taken(driver)
    attempt.tell(b'{"event":"note","text":"1"}\n{"event":"no')
    time.sleep(0.5)
    attempt.tell(b'te","text":"2"}\n')
    for number in range(3, 30):
        attempt.tell(b'{"event":"note","text":"%d"}\n' % number)
        time.sleep(0.01)
    attempt.end({"receipt": signed(cell).model_dump(mode="json")})
    assert future.result(20).cell == cell.name
    assert [event["text"] for _, event in heard] == [str(number) for number in range(1, 30)]
    assert driver.queue.attempts() == []


def test_failures_and_cells_that_are_given_back_are_told_apart(tmp_path, drive) -> None:
    driver = drive()
    future = driver.submit(cell_of(tmp_path), job_of())
    failed = {"kind": "RunFailedError", "text": "it diverged", "trace": "in _train"}
    taken(driver).end({"failed": failed})
    error = result_of(future)
    assert isinstance(error, CellFailedError)
    assert (error.text, error.trace) == ("it diverged", "in _train")
    future = driver.submit(cell_of(tmp_path), job_of())
    taken(driver).end({"returned": "its worker was interrupted"})
    assert isinstance(result_of(future), ReturnedCellError)


def test_a_receipt_whose_file_is_not_seen_yet_is_waited_for(tmp_path, drive) -> None:
    driver, cell = drive(), cell_of(tmp_path)
    receipt = signed(cell)
    aside = cell.receipt_path.rename(tmp_path / "aside")
    future = driver.submit(cell, job_of())
    taken(driver).end({"receipt": receipt.model_dump(mode="json")})
    time.sleep(0.8)
    assert not future.done()
    aside.rename(cell.receipt_path)
    assert future.result(20) == receipt


def test_the_next_process_goes_on_listening_and_hears_what_none_has_heard(tmp_path, drive) -> None:
    first, heard = drive(), Heard()
    one, other = cell_of(tmp_path), cell_of(tmp_path, "students/1")
    first.submit(one, job_of(heard))
    running = taken(first)
    running.tell(b'{"event":"bar","bar":1,"title":"t","total":9,"depth":0}\n')
    running.tell(b'{"event":"note","text":"kept"}\n')
    until = time.monotonic() + 20
    while running.notes() == 0:  # known to be in the log
        assert time.monotonic() < until
        time.sleep(0.05)
    first.submit(other, job_of(heard))
    ended = next(a for a in first.queue.attempts() if not a.is_taken())
    first.submit(cell_of(tmp_path, "students/2"), job_of(heard))
    first._stop = True  # it is killed
    first._thread.join()
    assert ended.take(ELSEWHERE)
    ended.tell(
        b'{"event":"rows","rows":[["students",1,{"loss":1}]]}\n{"event":"note","text":"n"}\n'
    )
    ended.end({"receipt": signed(other).model_dump(mode="json")})
    running.tell(b'{"event":"note","text":"new"}\n')

    again = Heard()
    second = drive()
    second.begin(job_of(again))
    assert [e["event"] for name, e in again if name == "students/1"] == ["rows", "note"]
    left = [attempt.name for attempt in second.queue.attempts()]
    assert left == [running.name], "what none had taken is posted anew when it is asked for"
    future = second.submit(one, job_of(again))
    running.end({"receipt": signed(one).model_dump(mode="json")})
    assert future.result(20).cell == "students/0"
    told = [e.get("text", e["event"]) for name, e in again if name == "students/0"]
    assert told == ["bar", "new"]


def test_attempts_of_another_installation_are_removed(tmp_path, drive) -> None:
    first = drive()
    first.submit(cell_of(tmp_path), job_of())
    running = taken(first)
    first._stop = True
    first._thread.join()
    drive().begin(job_of(fingerprint={"torch": "2.0"}))
    assert running.files() is None


def test_workers_that_refuse_are_told_in_the_log_once(tmp_path, drive, monkeypatch) -> None:
    monkeypatch.setattr(driver_module, "WORKERS_S", 0.1)
    driver, heard = drive(), Heard()
    driver.submit(cell_of(tmp_path), job_of(heard))
    for name in ("a", "b"):
        fields = ELSEWHERE | {"refused": {driver.id: "planned with torch 1; the worker has 2"}}
        (driver.queue.workers / f"{name}.json").write_text(json.dumps(fields))
    time.sleep(1.5)
    assert [event for _, event in heard] == [
        {
            "event": "log",
            "text": "other, process 1, job 12_3 takes no cells: planned with torch 1; the worker "
            "has 2",
        }
    ]


def test_workers_see_which_processes_plan_and_which_have_ended(tmp_path, drive) -> None:
    now = SimpleNamespace(s=0.0)
    driver = drive()
    seen = Drivers(driver.queue, clock=lambda: now.s)
    seen.look()
    assert (list(seen.found), seen.ended) == ([driver.id], False)
    driver.close("done")
    seen.look()
    assert (list(seen.found), seen.ended) == ([], True)
    late = Drivers(driver.queue)
    late.look()
    assert not late.ended, "a worker that starts then waits for the next one"
    silent = {"state": "plans", "beat": 1} | ELSEWHERE
    (driver.queue.drivers / "x.json").write_text(json.dumps(silent))
    seen.look()
    assert list(seen.found) == ["x"]
    now.s = 100.0
    seen.look()
    assert list(seen.found) == [], "it has not beaten for long"


# --- the worker --------------------------------------------------------------------------------


@cache
def registry():
    return collect(get_plugin_manager())


def planned(out, method="random", **settings):
    plan = make_plan(
        registry(), method=method, track=str(TRACK), device="cpu", threads=1, assignments=settings
    )
    context = RunContext(plan, registry(), out, Path("data"))
    job = Job(
        run_id=plan.run_id(),
        message=message_of(context),
        events=Heard(),
        run_here=lambda _: None,
    )
    return context, job


@pytest.mark.parametrize("what", ["fingerprint", "data"])
def test_a_worker_that_would_compute_something_else_refuses_with_both_lists(
    what, tmp_path, drive
) -> None:
    context, job = planned(tmp_path / "out")
    (cell,) = cells_of(context, "distill")
    if what == "fingerprint":
        other = {**job.message["fingerprint"], "torch": "9.9", "plugin x": "x 1"}
        job = job_of(job.events, **{**job.message, "fingerprint": other})
    else:
        job = job_of(job.events, **{**job.message, "data": ["0" * 64, "1" * 64]})
    driver = drive()
    driver.begin(job)
    future = driver.submit(cell, job)
    again = []
    future.add_done_callback(lambda _: again.append(driver.submit(cell, job)))
    done = robustdd("worker", "--out", str(tmp_path / "out"), "--wait", "20")
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    if what == "fingerprint":
        torch = context.shared.fingerprint(registry())["torch"]
        assert "planned with plugin x x 1, torch 9.9; " in last
        assert f"the worker has plugin x absent, torch {torch}" in last
    else:
        assert "are not those that the run was planned with" in last
        assert isinstance(future.exception(), ReturnedCellError), "it may be another worker's"
    assert not cell.done()


def test_a_worker_computes_what_fits_and_leaves_the_rest(tmp_path, drive) -> None:
    context, job = planned(tmp_path / "out")
    (cell,) = cells_of(context, "distill")
    driver = drive()
    driver.begin(job)
    future = driver.submit(cell, job)
    left = robustdd("worker", "--out", str(tmp_path / "out"), "--wait", "0", "--only", "mat/*")
    assert left.returncode == 0
    assert "cells wait that are left out by --only" in left.stderr
    assert not future.done()
    done = robustdd("worker", "--out", str(tmp_path / "out"), "--wait", "0", "--only", "rand*/fast")
    assert "distill of random fast" in done.stderr
    assert "there was nothing to do for 0.0 s; 1 cells computed" in done.stderr
    assert future.result(20) == cell.receipt()
    assert [shown["state"] for shown in driver.workers().values()] == ["ended", "ended"]


def test_a_worker_without_a_gpu_leaves_its_cells_to_others_and_says_so(tmp_path, drive) -> None:
    context, job = planned(tmp_path / "out")
    driver = drive()
    driver.begin(job)
    (cell,) = cells_of(context, "distill")
    request = driver._request(cell, job, driver.queue.keep_message(job.message)) | {"gpus": 1}
    driver.queue.post(0, "key", request)
    done = robustdd("worker", "--out", str(tmp_path / "out"), "--wait", "0", "--device", "cpu")
    assert "cells wait for a GPU, which this worker does not have" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("0 cells computed")


def test_a_worker_waits_for_the_process_that_plans_and_ends_with_it(tmp_path) -> None:
    out = tmp_path / "out"

    def plan():
        driver = QueueDriver(out, lease_s=60)
        time.sleep(1.0)
        driver.close("done")

    later = threading.Timer(0.5, plan)
    later.start()
    start = time.monotonic()
    done = robustdd("worker", "--out", str(out), "--wait", "60")
    later.join()
    assert (done.returncode, time.monotonic() - start < 10) == (0, True)
    assert done.stderr.splitlines()[-1] == "worker: the runs have ended; 0 cells computed"


def test_a_cell_that_is_cancelled_is_interrupted_and_given_back(tmp_path) -> None:
    out = tmp_path / "out"
    context, job = planned(out, "dm", iterations=100_000, batch_real=16, checkpoint_seconds=0)
    (cell,) = cells_of(context, "distill")
    driver = QueueDriver(out, lease_s=60)
    driver.begin(job)
    future = driver.submit(cell, job)

    def cancel():
        while not list((context.folder / "work").rglob("*.safetensors")):
            time.sleep(0.05)
        driver.close("stopped")

    thread = threading.Thread(target=cancel)
    thread.start()
    done = robustdd("worker", "--out", str(out), "--wait", "3")
    thread.join()
    assert done.returncode == 0, done.stderr
    assert "distill of dm fast" in done.stderr
    assert ": cancelled" in done.stderr
    assert isinstance(future.exception(), ReturnedCellError)
    kinds = [event["event"] for _, event in job.events]
    assert "close" in kinds
    assert kinds[-1] == "rows", "what it had to tell when it was stopped is kept"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--wait", "-1"], "--wait must lie in 0"),
        (["--data-root", "nowhere"], "no folder nowhere"),
        (["--out", "FILE"], "is no folder; see --out"),
        (["--device", "cuda:x"], "unknown device"),
    ],
)
def test_a_wrong_call_of_a_worker_is_told_at_once(words, said, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "file") if word == "FILE" else word for word in words]
    done = robustdd("worker", *words)
    assert done.returncode == 2
    assert said in done.stderr

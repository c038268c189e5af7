"""Whole runs by `robustdd worker`: workers and the process that plans are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from commands import INTERRUPTIBLE, robustdd
from engines import folders
from small_runs import SETTINGS, TRACK, record_json

LONG = {**dict(text.split("=", 1) for text in SETTINGS["mat"]), "iterations": "60"}


def words(out, *more):
    found = ["run", "--method", "mat", "--track", str(TRACK), "--device", "cpu", "--compile", "off"]
    for key, value in LONG.items():
        found += ["--set", f"{key}={value}"]
    return [*found, "--threads", "1", "--out", str(out), *more]


@contextmanager
def process(*args):
    """`robustdd ARGS`, going on."""
    started = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def until(true, *processes):
    end = time.monotonic() + 90
    while not true():
        assert time.monotonic() < end
        for one in processes:
            assert one.poll() is None, one.communicate()
        time.sleep(0.02)


def one_run(out):
    (folder,) = folders(out).values()
    return folder


def steps(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["stage"] == "distill/matching"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    out = tmp_path_factory.mktemp("local")
    assert robustdd(*words(out)).returncode == 0
    return one_run(out)


def test_the_process_that_plans_is_killed_and_the_same_command_finds_the_worker_at_work(
    local, tmp_path
) -> None:
    with process("worker", "--out", str(tmp_path), "--wait", "60") as worker:
        with process(*words(tmp_path, "--executor", "workers")) as driver:
            until(lambda: list(tmp_path.rglob("matching.safetensors")), driver, worker)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        again = robustdd(*words(tmp_path, "--executor", "workers"))
        assert again.returncode == 0, again.stderr
        _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0
    assert said.count("distill of mat fast") == 1, "it went on all the time"
    assert said.splitlines()[-1].startswith("worker: the runs have ended; ")
    folder = one_run(tmp_path)
    assert record_json(folder)["results_sha256"] == record_json(local)["results_sha256"]
    assert steps(folder) == steps(local), "no value is lost, none is there twice"
    assert "computed again" not in (folder / "run.log").read_text()


def test_the_cell_of_a_worker_that_is_killed_is_computed_by_another(local, tmp_path) -> None:
    call = words(tmp_path, "--executor", "workers")
    other = ("worker", "--out", str(tmp_path), "--wait", "60")
    with process(*other) as first, process(*other) as second, process(*call) as driver:
        until(lambda: list(tmp_path.rglob("matching.safetensors")), driver, first, second)
        (lease,) = (tmp_path / "queue" / "cells").glob("*/lease.jsonl")
        os.kill(json.loads(lease.read_text().splitlines()[0])["pid"], signal.SIGKILL)
        _, said = driver.communicate(timeout=90)
        assert driver.returncode == 0, said
        codes = {first.wait(30), second.wait(30)}
    assert codes == {0, -signal.SIGKILL}
    folder = one_run(tmp_path)
    assert record_json(folder)["results_sha256"] == record_json(local)["results_sha256"]
    kept = steps(folder)  # a kill takes the values of the last seconds, as it does from a local run
    assert kept == sorted(set(kept))
    assert set(kept) <= set(steps(local))
    log = (folder / "run.log").read_text()
    assert log.count("distill: its worker was lost, it is computed again") == 1
    assert "the worker has ended (" in log


def test_a_worker_that_is_interrupted_gives_its_cell_back_at_once(tmp_path) -> None:
    call = words(tmp_path, "--executor", "workers")
    with process(*call) as driver, process("worker", "--out", str(tmp_path)) as worker:
        until(lambda: list(tmp_path.rglob("matching.safetensors")), driver, worker)
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=20)
        assert worker.returncode == 143
        last = said.splitlines()[-1]
        assert last.startswith("interrupted; distill of mat fast ")
        assert last.endswith(" was given back")
        (log,) = tmp_path.glob("*/*/*/run.log")
        until(lambda: "distill: it was given back, it is computed again" in log.read_text(), driver)
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert said.splitlines()[-1].endswith(
        "experts 2/2, a checkpoint of the distillation. Repeat the command to resume."
    )
    assert not list((tmp_path / "queue" / "cells").iterdir()), "nothing is offered any more"

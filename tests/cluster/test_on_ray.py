"""The Ray executor on a cluster of several raylets: what is killed, and what is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import INTERRUPTIBLE, robustdd
from engines import arguments, assert_same_runs, folders, sweep_file, values
from ray_machines import Machines
from robustdd_ray.node import remove_dead
from small_runs import SETTINGS, files, record_json

pytestmark = pytest.mark.cluster
pytest.importorskip("ray")

LONG = 800
"""Iterations of a distillation that takes some seconds."""


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    found = Machines(tmp_path_factory.mktemp("machines"))
    try:
        found.add("a", ROBUSTDD_DATA="nowhere")
        found.add("b")
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep with a long distillation, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("local")
    path = sweep_file(folder, methods=("mat", "random"), seeds=(0,))
    text = path.read_text().replace("iterations = 3", f"iterations = {LONG}")
    path.write_text(text)
    assert str(LONG) in text
    assert SETTINGS["mat"]
    done = robustdd(*arguments(path, folder / "out"), "--executor", "local")
    assert done.returncode == 0, done.stderr
    return path, folder / "out"


def begin(sweep, out: Path, machines, *more: str):
    words = [*arguments(sweep, out), "--executor", "ray"]
    words += ["--executor-set", f"address={machines.address}", *more]
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )


def until(what, driver=None, seconds=240):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert driver is None or driver.poll() is None, driver.communicate()
        if time.monotonic() > end:
            if driver is not None:
                driver.kill()
            pytest.fail(f"nothing happens: {driver and driver.communicate()}")
        time.sleep(0.05)
    return found


def workers(place: Path) -> list[int]:
    """Processes that compute cells on a machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"TMPDIR={place}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and b"execution.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def distilling(machines, *names: str) -> str:
    """The machine that has a checkpoint of a distillation that runs; "" if there is none."""
    for name in names:
        place = machines.folder / name
        if workers(place) and _newest(place):
            return name
    return ""


def _newest(place: Path) -> bool:
    try:
        times = [path.stat().st_mtime for path in place.rglob("matching.safetensors")]
    except FileNotFoundError:
        return False
    return any(time.time() - found < 5 for found in times)


def assert_same_results(ours: Path, theirs: Path) -> None:
    """As `assert_same_runs`, but a kill takes the values and lines that were not told yet."""
    one, other = folders(ours), folders(theirs)
    assert one.keys() == other.keys()
    for run_id, folder in one.items():
        records = [record_json(place) for place in (folder, other[run_id])]
        for record in records:
            del record["costs"]
        assert records[0] == records[1]
        assert records[0]["status"] == "complete"
        found = files(folder)
        assert found.keys() == files(other[run_id]).keys()
        for name in found:
            if name.endswith((".safetensors", ".png")) or (
                name.startswith("cells/") and not name.endswith(".cell.json")
            ):
                assert found[name].read_bytes() == (other[run_id] / name).read_bytes(), name
        assert set(values(folder)) <= set(values(other[run_id]))


def removed_by_the_next(machines) -> list[Path]:
    """What there is on the machines that live, once the next actor there has tidied up."""
    roots = [
        path
        for path in machines.folder.glob("*/robustdd-ray-*")
        if path.parent.name not in machines.dead
    ]
    for root in roots:
        remove_dead(root)
    return [path for root in roots for path in root.iterdir() if path.is_dir()]


def test_the_sweep_of_all_engines_is_that_of_one_process(machines, local_sweep, tmp_path) -> None:
    driver = begin(sweep_file(tmp_path), tmp_path / "out", machines)
    _, stderr = driver.communicate(timeout=400)
    assert driver.returncode == 0, stderr
    assert_same_runs(tmp_path / "out", local_sweep)


def test_a_worker_and_a_machine_that_are_killed_in_the_middle_change_no_result(
    machines, sweep, tmp_path
) -> None:
    path, local = sweep
    driver = begin(path, tmp_path / "out", machines)
    first = until(lambda: distilling(machines, "a", "b"), driver)
    for pid in workers(machines.folder / first):
        os.kill(pid, signal.SIGKILL)
    time.sleep(2)
    second = until(lambda: distilling(machines, "a", "b"), driver)
    machines.kill(second)
    _, stderr = driver.communicate(timeout=400)
    assert driver.returncode == 0, stderr
    assert_same_results(tmp_path / "out", local)
    logs = "".join((f / "run.log").read_text() for f in folders(tmp_path / "out").values())
    assert logs.count("distill: its worker was lost, it is computed again") == 2
    assert "SIGKILL" in logs
    assert not list((tmp_path / "out").rglob(".*.*")), "nothing half-written"
    for name in ("a", "b"):  # for the tests that follow
        if name == second:
            machines.add(f"{name}2")


def test_a_machine_that_lacks_a_plugin_is_not_used_and_a_killed_driver_is_started_again(
    machines, sweep, tmp_path
) -> None:
    path, local = sweep
    machines.add("c", ROBUSTDD_DISABLED_PLUGINS="cite")
    out = tmp_path / "out"
    driver = begin(path, out, machines)
    names = [folder.name for folder in machines.folder.iterdir()]
    until(lambda: distilling(machines, *names), driver)
    driver.kill()
    driver.communicate(timeout=30)
    until(lambda: not [p for name in names for p in workers(machines.folder / name)])
    again = begin(path, out, machines)
    _, stderr = again.communicate(timeout=400)
    assert again.returncode == 0, stderr
    assert_same_results(out, local)
    logs = "".join((f / "run.log").read_text() for f in folders(out).values())
    assert "not used: machine " in logs
    assert "planned with plugin cite " in logs
    assert "the worker has plugin cite absent" in logs
    assert not workers(machines.folder / "c")
    # An actor that is killed before it has tidied up leaves its folder to the next on its machine.
    until(lambda: not removed_by_the_next(machines), seconds=60)


def test_ctrl_c_keeps_the_checkpoint_and_a_head_that_is_gone_is_told_in_seconds(
    machines, sweep, tmp_path
) -> None:
    path, local = sweep
    out = tmp_path / "out"
    names = [folder.name for folder in machines.folder.iterdir()]
    driver = begin(path, out, machines)
    until(lambda: distilling(machines, *names), driver)
    driver.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, stderr = driver.communicate(timeout=400)
    assert time.monotonic() - began < 60
    assert driver.returncode == 130, stderr
    assert "a checkpoint of the distillation" in stderr.splitlines()[-1]
    assert stderr.splitlines()[-1].endswith("Repeat the command to resume.")
    assert list(out.rglob("matching.safetensors"))

    driver = begin(path, out, machines)
    until(lambda: distilling(machines, *names), driver)
    machines.kill_head()
    began = time.monotonic()
    _, stderr = driver.communicate(timeout=400)
    assert time.monotonic() - began < 50  # Ray itself gives up after 60 s
    assert driver.returncode == 1
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: the Ray cluster {machines.address} is gone")
    assert last.endswith("Repeat the command to resume.")
    # Elsewhere, with what is there; no failure was recorded.
    done = robustdd(*arguments(path, out), "--executor", "local")
    assert done.returncode == 0, done.stderr
    assert_same_results(out, local)

"""The Ray executor without Ray: its driver runs on a made-up cluster whose nodes are real."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import INTERRUPTIBLE, robustdd
from engines import assert_same_run
from PIL import Image
from robustdd_ray import driver, executor, fleet, node
from robustdd_ray.cluster import ConnectError, endpoint
from robustdd_ray.executor import RayExecutor
from robustdd_ray.fleet import Fleet, Need, NodeFacts, need_of, places
from small_runs import SETTINGS, TRACK, example, files, without_costs

from robustdd_bench.config import build_config
from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import ExecutorEndedError, LocalExecutor
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.execution.link import LostWorkerError
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.planned import PlannedRun
from robustdd_bench.runs.progress.displays import NullReporter

GIB = 2**30


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """Machines without the data, whose temporary files are in a folder of the test."""
    place = tmp_path / "machines"
    place.mkdir()
    monkeypatch.setattr(executor, "DRIVER", "fake_ray")
    monkeypatch.setattr(executor, "installed", lambda: True)
    monkeypatch.setenv("FAKE_RAY_LOG", str(tmp_path / "calls.jsonl"))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def registry():
    return collect(get_plugin_manager())


def plan_of(method, *settings, track=TRACK):
    values = dict(text.split("=", 1) for text in (*SETTINGS.get(method, ()), *settings))
    assignments = [f"{key}={value}" for key, value in values.items()]
    return make_plan(
        registry(), method=method, track=str(track), device="cpu", assignments=assignments
    )


def run(out, address, method="random", *settings, workers=1, track=TRACK, data_root=Path("data")):
    plan = plan_of(method, *settings, track=track)
    config = build_config(
        RayExecutor.Config, {"address": address, "max_workers": workers}, "executor ray"
    )
    return execute(
        plan,
        registry(),
        RayExecutor(config),
        out=Path(out),
        data_root=data_root,
        reporter=NullReporter,
    )


@cache
def example_of(*settings):
    out = tempfile.mkdtemp(prefix="alone.")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    return alone(plan_of("mat", *settings), Path(out))


def alone(plan, out, data_root=Path("data")):
    found, here = registry(), LocalExecutor()
    return execute(plan, found, here, out=out, data_root=data_root, reporter=NullReporter)


def calls(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]


def log(finished):
    return (finished.folder / "run.log").read_text()


def test_a_run_on_machines_that_share_no_folder_is_that_of_one_process(nodes, tmp_path) -> None:
    finished = run(tmp_path / "out", "plain", "mat", workers=0)
    assert without_costs(finished.record) == without_costs(example("mat").record)
    assert_same_run(finished.folder, example("mat").folder)
    assert [path.name for path in nodes.glob("robustdd-ray-*/*")] == [".lock"], "all is tidied up"
    assert not [path for path in files(tmp_path / "out") if "robustdd-ray" in path]


@pytest.mark.parametrize("address", ["lost", "damaged"])
def test_what_is_lost_or_damaged_on_its_way_is_computed_again(address, nodes, tmp_path) -> None:
    finished = run(tmp_path / "out", address)
    assert_same_run(finished.folder, example("random").folder)
    text = {"lost": "its machine was lost", "damaged": "arrived damaged"}[address]
    assert text in log(finished)
    assert "its worker was lost, it is computed again" in log(finished)


def test_a_machine_that_is_installed_otherwise_is_told_once_and_not_used(nodes, tmp_path) -> None:
    finished = run(tmp_path / "out", "differs")
    assert without_costs(finished.record) == without_costs(example("random").record)
    (line,) = [line for line in log(finished).splitlines() if "not used" in line]
    assert "not used: machine host0 (00000000): the worker is not installed as" in line
    assert "planned with plugin x absent, torch " in line
    assert "the worker has plugin x x 1, torch 9.9" in line


def test_where_all_machines_are_installed_otherwise_the_call_ends_with_the_lists(
    nodes, tmp_path
) -> None:
    with pytest.raises(ExecutorEndedError, match=r"machine host0 .*torch 9\.9.*machine host1") as e:
        run(tmp_path / "out", "differ")
    assert str(e.value).endswith("Repeat the command to resume.")
    assert not list((tmp_path / "out").rglob("record.json")), "no run has failed"


def test_a_cluster_that_is_gone_ends_the_call_and_keeps_what_is_done(nodes, tmp_path) -> None:
    with pytest.raises(ExecutorEndedError, match=r"^the Ray cluster gone is gone: .*; kept in "):
        run(tmp_path / "out", "gone")
    assert not list((tmp_path / "out").rglob("record.json"))


def test_a_full_object_store_is_one_clear_line(nodes, tmp_path) -> None:
    with pytest.raises(RunFailedError, match=r"the object store of Ray and the disk .* are full"):
        run(tmp_path / "out", "full")


def test_nobody_at_the_address_is_a_wrong_call(nodes, tmp_path) -> None:
    with pytest.raises(ExecutorEndedError, match=r"^no Ray cluster answers at nowhere$") as caught:
        run(tmp_path / "out", "nowhere")
    assert caught.value.exit_code == 2


def test_the_data_are_fetched_once_where_a_machine_has_none(nodes, tmp_path, monkeypatch) -> None:
    for part in ("train", "test"):
        for i in range(16):
            folder = tmp_path / "data" / part / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 16 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    track = tmp_path / "folder.toml"
    text = TRACK.read_text().replace('"digits"', '"folder"').replace('"fast"', '"folder"')
    track.write_text(re.sub(r"(?m)^options = \{ test.*$", "", text))
    monkeypatch.setenv("ROBUSTDD_DATA", str(tmp_path / "nothing"))
    given, write = [], PlannedRun.write_data
    monkeypatch.setattr(
        PlannedRun, "write_data", lambda run, path: (given.append(path), write(run, path))
    )
    there = run(tmp_path / "there", "plain", track=track, data_root=tmp_path / "data")
    assert len(given) == 1
    monkeypatch.delenv("ROBUSTDD_DATA")
    here = alone(plan_of("random", track=track), tmp_path / "here", tmp_path / "data")
    assert_same_run(there.folder, here.folder)


def test_a_distillation_goes_on_elsewhere_from_its_checkpoint(nodes, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RAY_KEEP_S", "0.05")
    finished = run(tmp_path / "out", "checkpoint", "mat", "iterations=60")
    expected = example_of("iterations=60")
    assert without_costs(finished.record) == without_costs(expected.record)
    begun = [line for line in calls(tmp_path) if line.get("begin") == "distill"]
    places = [any("work/matching" in path for path in line["reads"]) for line in begun]
    assert places == [False, True]
    assert "distill: its worker was lost" in log(finished)


def test_ctrl_c_fetches_the_checkpoint(nodes, tmp_path) -> None:
    words = ["run", "--method", "mat", "--track", str(TRACK), "--device", "cpu"]
    for setting in (*SETTINGS["mat"], "iterations=4000"):
        words += ["--set", setting] if not setting.startswith("iterations=3") else []
    words += ["--out", str(tmp_path / "out"), "--executor", "ray", "--executor-set", "address=x"]
    code = INTERRUPTIBLE.replace(
        "from robustdd_bench.cli",
        "from robustdd_ray import executor; executor.DRIVER = 'fake_ray'; "
        "executor.installed = lambda: True; from robustdd_bench.cli",
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    until = time.monotonic() + 120
    while not list(nodes.rglob("matching.safetensors")):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 130, said
    assert said.splitlines()[-1].endswith(
        "experts 2/2, a checkpoint of the distillation. Repeat the command to resume."
    )
    assert len(list((tmp_path / "out").rglob("work/matching.safetensors"))) == 1
    assert not list(nodes.rglob("matching.safetensors")), "all is tidied up"


# --- what is wrong before anything begins ---------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["max_workers=-1"], "max_workers must be at least 0"),
        (["adress=auto"], "did you mean 'address'"),
        (["object_store_mb=7"], "object_store_mb must be 0 or at least 75"),
        (["object_store_mb=80", "address=auto"], "object_store_mb is of a local cluster"),
    ],
)
def test_wrong_options_are_told_before_anything_is_started(
    settings, text, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(executor, "installed", lambda: True)
    words = [word for one in settings for word in ("--executor-set", one)]
    out = ["--out", str(tmp_path), "--track", str(TRACK), "--device", "cpu"]
    done = robustdd("run", "--method", "random", *out, "--executor", "ray", *words)
    assert done.returncode == 2
    assert text in done.stderr


def test_without_ray_one_line_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(executor, "installed", lambda: False)
    out = ["--out", str(tmp_path), "--track", str(TRACK), "--device", "cpu"]
    done = robustdd("run", "--method", "random", *out, "--executor", "ray")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the executor ray needs Ray: pip install 'robustdd-bench[ray]'"
    )


def test_ray_is_not_imported_by_the_command_line() -> None:
    code = (
        "import sys; from robustdd_bench.cli.main import main; main(['list', 'executors']); "
        "from robustdd_ray.executor import RayExecutor; RayExecutor; "
        "sys.exit('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ray" in done.stdout


@pytest.mark.parametrize("address", ["here", "host:", ":80", "host:99999", "ray://host", "a:b"])
def test_what_is_no_address_is_refused(address) -> None:
    with pytest.raises(ConnectError, match="address must be auto, HOST:PORT or ray://HOST:PORT"):
        endpoint(address)
    assert endpoint("ray://[::1]:10001") == ("::1", 10001)


# --- room, and who may compute ---------------------------------------------------------------


def machine(name, cpus=4, gpus=0, memory=16 * GIB):
    return NodeFacts(name * 8, name, cpus, gpus, memory)


def test_there_is_room_as_cores_gpus_and_memory_allow() -> None:
    nodes = [machine("a"), machine("b", cpus=8, gpus=2), machine("c", memory=2 * GIB)]
    assert places(nodes, Need(0, 1, GIB)) == 4 + 8 + 2
    assert places(nodes, Need(0, 3, GIB)) == 1 + 2 + 1
    assert places(nodes, Need(1, 1, GIB)) == 2
    assert places(nodes, Need(0, 0, 0)) == 16
    assert places(nodes, Need(0, 1, 5 * GIB)) == 3 + 3


def test_memory_is_rounded_up_and_never_more_than_a_machine_has() -> None:
    nodes = [machine("a"), machine("b", cpus=1, memory=64 * GIB)]
    assert need_of(0, 1, None, nodes).memory == GIB
    assert need_of(0, 1, GIB + 1, nodes).memory == 2 * GIB
    assert need_of(0, 2, 40 * GIB, nodes).memory == 16 * GIB, "the other has not the cores"
    assert need_of(1, 1, 5 * GIB, [machine("g", gpus=1)]).memory == GIB, "those are the GPU's"


class Cloud:
    """Actors that are there at once."""

    def __init__(self, nodes, *, fails=()):
        self._nodes, self.started, self.killed, self._fails = nodes, [], [], fails

    def nodes(self):
        return self._nodes

    def start(self, need, session, variables, avoid):
        free = [n for n in self._nodes if n.id not in avoid]
        self.started.append((need, free[len(self.started) % len(free)] if free else None))
        return len(self.started) - 1

    def hello(self, handle, timeout_s):
        _, place = self.started[handle]
        if place.name in self._fails:
            raise RuntimeError("it died")
        return {"node": place.id, "name": place.name, "fingerprint": {"torch": "1"}}

    def kill(self, handle):
        self.killed.append(handle)

    end = kill


def test_a_worker_that_has_too_little_memory_makes_room_for_a_larger_one() -> None:
    cloud = Cloud([machine("a", cpus=1)])
    found = Fleet(cloud, "s", {}, 0, lambda text: None)
    small = found.take(Need(0, 1, GIB), {"torch": "1"}, "run")
    found.give(small)
    assert found.take(Need(0, 1, GIB), {"torch": "1"}, "run") is small
    found.give(small)
    large = found.take(Need(0, 1, 4 * GIB), {"torch": "1"}, "run")
    assert (large.need.memory, cloud.killed) == (4 * GIB, [0])
    found.give(large)
    assert found.take(Need(0, 1, GIB), {"torch": "1"}, "run") is large


def test_no_more_workers_are_started_than_cells_wait() -> None:
    cloud = Cloud([machine("a", cpus=64)])
    found = Fleet(cloud, "s", {}, 0, lambda text: None)
    workers = [found.take(Need(0, 1, GIB), {"torch": "1"}, "r") for _ in range(3)]
    assert len(cloud.started) == 3
    assert len({id(worker) for worker in workers}) == 3


def test_a_worker_is_given_cells_of_the_run_that_it_has_worked_on() -> None:
    found = Fleet(Cloud([machine("a")]), "s", {}, 0, lambda text: None)
    need = Need(0, 1, GIB)
    one, other = (found.take(need, {"torch": "1"}, run) for run in ("one", "other"))
    found.give(one)
    found.give(other)
    assert found.take(need, {"torch": "1"}, "one") is one
    assert found.take(need, {"torch": "1"}, "one") is other


def test_workers_that_die_while_they_start_end_the_call() -> None:
    found = Fleet(Cloud([machine("a")], fails=("a",)), "s", {}, 0, lambda text: None)
    with pytest.raises(ExecutorEndedError, match="end while they start, 3 in a row: it died"):
        found.take(Need(0, 1, GIB), {"torch": "1"}, "r")


def test_a_cluster_without_machines_ends_the_call() -> None:
    found = Fleet(Cloud([]), "s", {}, 0, lambda text: None)
    with pytest.raises(ExecutorEndedError, match="no machine left") as caught:
        found.take(Need(0, 1, 0), {"torch": "1"}, "r")
    assert caught.value.exit_code == 1


def test_a_cell_for_which_no_machine_has_the_means_ends_the_call_as_a_wrong_one() -> None:
    found = Fleet(Cloud([machine("a")]), "s", {}, 0, lambda text: None)
    with pytest.raises(ExecutorEndedError, match=r"has 1 CPUs and 1 GPU .*a: 4 CPUs, 0 GPUs") as e:
        found.take(Need(1, 1, GIB), {"torch": "1"}, "r")
    assert e.value.exit_code == 2


def test_a_closed_fleet_lets_nobody_wait() -> None:
    found = Fleet(Cloud([machine("a")]), "s", {}, 1, lambda text: None)
    found.take(Need(0, 1, GIB), {"torch": "1"}, "r")
    found.close()
    with pytest.raises(LostWorkerError, match="the executor was left"):
        found.take(Need(0, 1, GIB), {"torch": "1"}, "r")


def test_a_machine_without_the_package_is_told_what_to_install() -> None:
    about = {"node": "n" * 9, "name": "h", "problem": "ModuleNotFoundError: No module named 'x'"}
    assert "pip install 'robustdd-bench[ray]' there" in fleet.problem_of(about, {})


# --- files on machines ---------------------------------------------------------------------------


def test_variables_that_decide_bits_are_those_of_the_process_that_plans() -> None:
    found = driver.variables({"OMP_NUM_THREADS": "3", "ROBUSTDD_X": "1", "ROBUSTDD_DATA": "d"})
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("3", None)
    assert found["ROBUSTDD_X"] == "1"
    assert "ROBUSTDD_DATA" not in found


def test_inputs_stay_in_the_object_store_for_the_next_and_make_room(tmp_path) -> None:
    put = []
    found = driver.References(lambda piece: put.append(piece) or len(put), most=250)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    assert found.of("a", tmp_path / "a") == found.of("a", tmp_path / "a") == [1]
    found.of("b", tmp_path / "b")
    found.of("c", tmp_path / "c")
    assert found.of("a", tmp_path / "a") == [4], "it had been let go"


def test_what_dead_actors_have_left_is_removed_and_what_lives_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = node.user_folder()
    assert root.stat().st_mode & 0o777 == 0o700
    for name in ("dead", "half"):
        (root / name / "1-a").mkdir(parents=True)
        (root / name / "1-a.lock").touch()
    living = node.Node("half", "", {}, lambda ref: ref)
    (root / "half-").rename(root / "alive")
    node.remove_dead(root)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["alive"]
    living._folder, living._out = root / "alive", root / "alive" / living._out.name
    living.close()
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"robustdd-ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="is no folder of this user"):
        node.user_folder()

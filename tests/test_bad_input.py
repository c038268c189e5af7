"""Bad data and a full disk, for every method that is shipped: one line, the right exit code.

Nothing half-written is ever read as whole: a run that a full disk ended goes on, once there is
room, to the set that an unbroken run makes.
"""

import dataclasses
import errno
import os
import re

import bad_input
import pytest

from robustdd_bench import files
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.files import read_json
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.reporter import NullReporter

REGISTRY = collect(get_plugin_manager([("bad-input", bad_input.Plugin())]))
METHODS = [
    name
    for name, entry in REGISTRY.entries["distillers"].items()
    if REGISTRY.plugins[entry.plugin].distribution == "robustdd-bench"
]
REFERENCES = ["full"]
CHECKPOINTS = {
    "dc": "dc.safetensors",
    "dsa": "dsa.safetensors",
    "dm": "dm.safetensors",
    "mtt": "matching.safetensors",
    "mat": "matching.safetensors",
    "ftd": "matching.safetensors",
    "datm": "matching.safetensors",
    "tesla": "matching.safetensors",
    "mat-robust-labels": "matching.safetensors",
    "idm": "idm.safetensors",
    "rome": "rome.safetensors",
    "sre2l": "recovery.safetensors",
    "guard": "recovery.safetensors",
}
EXPERTS = dict.fromkeys(("mtt", "mat"), "expert-1.safetensors")
EXPERTS |= dict.fromkeys(("rded", "random-robust-labels"), "teacher.safetensors")
SETS = dict.fromkeys(("random", "mat"), "distilled.safetensors")


def quick_settings(method):
    """The settings in which the method's quick configuration differs from its defaults."""
    distiller = REGISTRY.get("distillers", method).load()
    config = getattr(distiller, "quick_config", distiller.Config)()
    default = distiller.Config()
    names = [field.name for field in dataclasses.fields(config)]
    changed = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(default, n)}
    return [f"{name}={value}" for name, value in changed.items()]


def run(method, folder, **track):
    plan = make_plan(
        REGISTRY,
        method=method,
        track=bad_input.write_track(folder, **track),
        assignments=quick_settings(method),
        device="cpu",
        threads=1,
    )
    return execute(
        plan,
        REGISTRY,
        LocalExecutor(),
        out=folder / "runs",
        data_root=folder,
        reporter=NullReporter,
    )


def made(folder, name):
    """Files of that name below a folder, half-written ones included."""
    return [path for path in folder.rglob("*") if path.is_file() and name in path.name]


# --- bad data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fault", "ipc", "message"),
    [
        ("none", 21, "ipc 21 is larger than class 1, which has 20 training images"),
        ("missing class", 2, "dataset 'tiny', train split: class 1 has no image"),
        ("nan", 2, "dataset 'tiny', train split: pixels hold NaN or infinity"),
    ],
    ids=["ipc larger than a class", "class missing", "NaN in images"],
)
def test_bad_data_end_a_run_before_anything_is_computed(method, fault, ipc, message, tmp_path):
    if method in REFERENCES and fault == "none":
        assert run(method, tmp_path, ipc=ipc).record.status == "complete"
        return
    with pytest.raises(UsageError) as caught:
        run(method, tmp_path, fault=fault, ipc=ipc)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2
    assert made(tmp_path / "runs", ".safetensors") == []


# --- a full disk -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a method makes when nothing happens: its set's hash, its files in the work folder."""
    found = {}

    def _unbroken(method):
        if method not in found:
            names, make = set(), files.tempfile.mkstemp

            def remember(*, prefix, dir):
                if dir.name == "work":
                    names.add(prefix.strip("."))
                return make(prefix=prefix, dir=dir)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(files.tempfile, "mkstemp", remember)
                finished = run(method, tmp_path_factory.mktemp("unbroken"))
            found[method] = finished.record.distilled.sha256, names
        return found[method]

    return _unbroken


class FullDisk:
    """Files of one name cannot be written, from the n-th write on.

    Their bytes go to /dev/full, where the kernel itself reports that no space is left.
    """

    def __init__(self, monkeypatch, name, after):
        self.writes, self._name, self._after = 0, name, after
        self._make = files.tempfile.mkstemp
        monkeypatch.setattr(files.tempfile, "mkstemp", self)

    def __call__(self, *, prefix, dir):
        descriptor, path = self._make(prefix=prefix, dir=dir)
        if prefix != f".{self._name}.":
            return descriptor, path
        self.writes += 1
        if self.writes <= self._after:
            return descriptor, path
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), path


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("method", "name", "after"),
    [
        ("mat", CHECKPOINTS["mat"], 0),
        *((method, name, 2) for method, name in CHECKPOINTS.items()),
        *((method, name, 0) for method, name in EXPERTS.items()),
        *((method, name, 0) for method, name in SETS.items()),
    ],
)
def test_a_run_that_a_full_disk_ended_goes_on_to_the_same_set(
    method, name, after, tmp_path, monkeypatch, unbroken
):
    wanted, _ = unbroken(method)
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, name, after)
        with pytest.raises(RunFailedError) as caught:
            run(method, tmp_path)
    assert disk.writes == after + 1, "the first failed write ends the run"
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert re.fullmatch(rf"cannot write \S*{re.escape(name)}: {os.strerror(errno.ENOSPC)}", message)
    assert len(made(tmp_path / "runs", name)) == (1 if after else 0)
    (record,) = (tmp_path / "runs").rglob("record.json")
    assert read_json(record)["status"] == "failed"
    assert read_json(record)["failure"]["reason"] == message

    finished = run(method, tmp_path)
    assert finished.record.distilled.sha256 == wanted
    assert DistilledSet.load(finished.folder / "distilled.safetensors").sha256() == wanted


@pytest.mark.parametrize("method", [name for name in METHODS if name not in REFERENCES])
def test_the_table_of_checkpoints_is_complete(method, unbroken):
    assert unbroken(method)[1] == ({CHECKPOINTS[method]} if method in CHECKPOINTS else set())

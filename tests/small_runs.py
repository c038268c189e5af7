"""Runs of a second: the track of tests/data/fast.toml, tiny settings, helpers to look at a run."""

from __future__ import annotations

import atexit
import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from small_methods import Crooks

from robustdd_bench.executors import LocalExecutor
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.records.plan import MEANS, make_plan
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter

TRACK = Path(__file__).parent / "data" / "fast.toml"
SUITE = TRACK.with_name("suite.toml")
MATCHING = (
    "experts=2",
    "start_epochs=1",
    "match_epochs=2",
    "expert_batch=512",
    "student_steps=2",
    "iterations=3",
    "checkpoint_seconds=0",
)
GRADIENTS = ("iterations=3", "outer=1", "inner=1", "batch_real=16", "checkpoint_seconds=0")
QUEUE = (
    "iterations=3",
    "batch_real=16",
    "networks_start=1",
    "networks_max=2",
    "train_networks=1",
    "train_steps=1",
    "train_batch=16",
    "checkpoint_seconds=0",
)
TEACHER = ("teacher_depth=2", "teacher_width=4", "teacher_epochs=1", "teacher_batch=512")
RECOVERY = (*TEACHER, "iterations=3", "checkpoint_seconds=0")
SETTINGS = {
    "mtt": MATCHING,
    "mat": (*MATCHING, "attack_steps=1"),
    "ftd": MATCHING,
    "datm": MATCHING,
    "tesla": MATCHING,
    "dc": GRADIENTS,
    "dsa": GRADIENTS,
    "dm": ("iterations=3", "batch_real=16", "checkpoint_seconds=0"),
    "idm": QUEUE,
    "rome": (*QUEUE, "attack_steps=1"),
    "sre2l": RECOVERY,
    "guard": RECOVERY,
    "rded": TEACHER,
    "random-robust-labels": (*TEACHER, "teacher_attack_steps=1"),
    "mat-robust-labels": (*MATCHING, "attack_steps=1", *TEACHER, "teacher_attack_steps=1"),
}
WITHOUT_STEPS = {"random", "full", "k-means", "k-centre", "herding", "rded", "random-robust-labels"}
"""Methods that choose images, or learn no more than a teacher: nothing is told step by step."""
PROMISED = {
    "record.json",
    "distilled.safetensors",
    "distilled.png",
    "robustness.png",
    "run.log",
    "metrics.jsonl",
}


@cache
def registry():
    return collect(get_plugin_manager([("crooks", Crooks())]))


def plan_of(method="random", *assignments, **options):
    options = {"track": str(TRACK), "threads": 1, "device": "cpu"} | options
    values = dict(text.split("=", 1) for text in (*SETTINGS.get(method, ()), *assignments))
    return make_plan(
        registry(),
        method=method,
        assignments=[f"{key}={value}" for key, value in values.items()],
        **options,
    )


def with_means_of(plan, other):
    """A plan carried out with the versions, device and threads of another one."""
    versions = {(attack.name, attack.plugin): attack.version for attack in other.attacks}
    attacks = tuple(
        dataclasses.replace(a, version=versions.get((a.name, a.plugin), a.version))
        for a in plan.attacks
    )
    means = {name: getattr(other, name) for name in sorted(MEANS)}
    return dataclasses.replace(plan, **means, attacks=attacks)


def run(plan, out, *, reporter=NullReporter, executor=None, data_root=Path("data"), fresh=False):
    return execute(
        plan,
        registry(),
        executor or LocalExecutor(),
        out=Path(out),
        data_root=data_root,
        reporter=reporter,
        fresh=fresh,
    )


def record_json(folder):
    return json.loads((folder / "record.json").read_text())


def without_costs(record):
    fields = record.model_dump(mode="json")
    del fields["costs"]
    return fields


def files(folder):
    """Every file of a run by its path in it."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p for p in found}


@cache
def example(method="random", **options):
    """A run that ended, made once for all tests. Do not write into its folder: copy it."""
    return run(plan_of(method, **options), _folder(method))


@cache
def _folder(method):
    """One for each method: methods that share experts would find those of another's run."""
    folder = tempfile.mkdtemp(prefix="small-runs.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def copy_of(finished, folder):
    """A copy of a run under `folder`, the store included; the run's folder in it."""
    out = finished.folder.parents[2]
    shutil.copytree(finished.folder, folder / finished.folder.relative_to(out))
    if (out / "store").exists():
        shutil.copytree(out / "store", folder / "store", dirs_exist_ok=True)
    return folder / finished.folder.relative_to(out)

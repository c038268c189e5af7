"""The presets of the baselines: every table fits, every value says its source."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from robustdd_bench.config import build_config
from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.imagenet.classes import SUBSET_GROUP
from robustdd_bench.records.plan import make_plan

ROOT = Path(__file__).parent.parent
REGISTRY = collect(get_plugin_manager())
BASELINES = ["dc", "dsa", "dm", "idm", "rome", "k-centre", "herding", "ftd", "datm", "tesla"]
BASELINES += ["sre2l", "guard", "rded"]
GROUPS = [SUBSET_GROUP, f"{SUBSET_GROUP}-ipc1", f"{SUBSET_GROUP}-ipc10"]
CONTROLS = ["random-robust-labels", "mat-robust-labels"]
METHODS = {
    name: REGISTRY.get("distillers", name).load()
    for name in [*BASELINES, "k-means", "random", "full", *CONTROLS]
}
TABLES = [
    (name, preset, where)
    for name, method in METHODS.items()
    for preset, tables in tomllib.loads(method.PRESETS.read_text()).items()
    for where in tables
]


@pytest.mark.parametrize(("name", "preset", "where"), TABLES)
def test_every_table_is_a_configuration_for_a_registered_track_or_dataset(name, preset, where):
    method = METHODS[name]
    values = tomllib.loads(method.PRESETS.read_text())[preset][where]
    assert where in {*REGISTRY.names("tracks"), *REGISTRY.names("datasets"), *GROUPS}
    config = build_config(method.Config, values, name)
    assert all(getattr(config, key) == value for key, value in values.items())


@pytest.mark.parametrize("name", METHODS)
def test_every_value_says_where_it_comes_from(name):
    lines = METHODS[name].PRESETS.read_text().splitlines()
    values = [line for line in lines if re.match(r"\w+ =", line)]
    assert [line for line in values if not re.search(r"  # .*(paper|ours|tuned)", line)] == []


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("track", ["digits-ipc1", "digits-ipc10"])
def test_baselines_have_a_tuned_default_for_the_digits(name, track):
    default = make_plan(REGISTRY, method=name, track=track, device="cpu")
    assert (
        default.config
        == make_plan(REGISTRY, method=name, track=track, preset="default", device="cpu").config
    )
    assert {(name, "default", track), (name, "default", "digits")} & set(TABLES)


@pytest.mark.parametrize(
    ("track", "loops"),
    [("cifar10-ipc1", (1, 1)), ("cifar10-ipc10", (10, 50)), ("cifar100-ipc50", (50, 10))],
)
@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_the_papers_loops_of_gradient_matching_are_those_the_method_knows(name, track, loops):
    plan = make_plan(REGISTRY, method=name, track=track, preset="paper", device="cpu")
    assert (plan.config["outer"], plan.config["inner"]) == loops
    assert plan.config["iterations"] == 1000


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "track",
    ["digits-ipc10", "cifar10-ipc10", "cifar100-ipc10", "tiny-imagenet-ipc10", "imagewoof-ipc1"],
)
def test_quick_is_never_longer_than_the_default_of_the_method(name, track):
    plan = make_plan(REGISTRY, method=name, track=track, preset="quick", device="cpu")
    default = METHODS[name].Config()
    for key in ("iterations", "epochs", "experts", "outer", "restarts"):
        value = getattr(default, key, 0)
        if value:
            assert plan.config[key] <= value


def test_an_unknown_preset_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"unknown preset 'papers'; did you mean 'paper'\?"):
        make_plan(REGISTRY, method="dm", track="cifar10-ipc10", preset="papers", device="cpu")


@pytest.mark.slow
def test_presets_are_part_of_the_wheel(tmp_path):
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    for name in ("robustdd_bench", "plugins", "baselines"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", wheels, source], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for method in METHODS.values():
        assert f"{method.PRESETS.parent.name}/{method.PRESETS.name}" in held

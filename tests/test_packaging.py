"""What people install: the source distribution, the wheel, and the tool in its own environment.

The environment holds what the wheel declares and nothing else: links to the installed files of its
dependencies, and of theirs. They are not downloaded, because PyTorch with its CUDA libraries is
several gigabytes; what is used without being declared is not there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from robustdd_bench import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def call(*command: str | Path, cwd: Path, seconds: int = 300) -> str:
    """Stdout of a command that is told nothing of this environment; it has to succeed."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "PYTHON", "ROBUSTDD")) and name != "VIRTUAL_ENV"
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_the_version_is_written_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["version"] == __version__
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == __version__


def test_addresses_of_the_project_are_written_in_one_place() -> None:
    hosts = {address.split("/")[2] for address in PROJECT["urls"].values()}
    assert {"Documentation", "Repository", "Issues", "Changelog"} <= PROJECT["urls"].keys()
    places = [
        name
        for name in tracked()
        if not name.startswith("leaderboard/results/")
        and any(host.encode() in (ROOT / name).read_bytes() for host in hosts)
    ]
    assert places == ["pyproject.toml"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a clone."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        path = folder / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    call(sys.executable, "-c", build, folder, cwd=folder / "clone")
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution builds."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    call(sys.executable, "-m", "pip", "wheel", *offline, "-w", folder, source, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_source_distribution_is_the_repository(source: Path) -> None:
    assert source.name == f"robustdd_bench-{__version__}.tar.gz"
    with tarfile.open(source) as archive:
        files = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert {"LICENSE", "docs/cli.md", "tests/test_packaging.py", "MANIFEST.in"} <= files
    made = {name for name in files if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert files - made == set(tracked())


@pytest.mark.slow
def test_the_wheel_holds_code_data_and_licence_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"robustdd_bench-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    info = f"robustdd_bench-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in files} == {
        info,
        "robustdd_bench",
        *(path.name for part in ("plugins", "baselines") for path in (ROOT / part).iterdir()),
    }
    code = [n for n in tracked() if n.startswith(("robustdd_bench/", "plugins/", "baselines/"))]
    code = [n for n in code if not n.endswith("README.md")]
    packed = {
        re.sub("^(plugins|baselines)/", "", name): (ROOT / name).read_bytes() for name in code
    }
    assert {name: text for name, text in files.items() if not name.startswith(info)} == packed
    metadata = files[f"{info}/METADATA"].decode()
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert "License-Expression: MIT\n" in metadata
    assert metadata.count("Project-URL: ") == len(PROJECT["urls"])
    assert metadata.count("Classifier: ") == len(PROJECT["classifiers"]) > 10


def closure(requirements: list[str]) -> Iterator[importlib.metadata.Distribution]:
    """The installed distributions that these requirements ask for, and all that those ask for."""
    ahead, seen = [Requirement(text) for text in requirements], set()
    while ahead:
        wanted = ahead.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        for extra in {"", *wanted.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                found = importlib.metadata.distribution(name)
                inner = [Requirement(text) for text in found.requires or []]
                ahead += [r for r in inner if not r.marker or r.marker.evaluate({"extra": extra})]
                if not extra:
                    yield found


@pytest.mark.slow
def test_the_installed_wheel_runs_mat_with_what_it_declares(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(call(python, "-c", code, cwd=tmp_path).strip())
    for distribution in closure(PROJECT["dependencies"]):
        for part in {file.parts[0] for file in distribution.files or []}:
            link = packages / part
            if part not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(distribution.locate_file(part))
    listed = call(python, "-m", "pip", "list", "--format=json", cwd=tmp_path)
    assert {"pytest", "hypothesis", "robustdd-bench"}.isdisjoint(
        d["name"] for d in json.loads(listed)
    )

    call(python, "-m", "pip", "install", "--no-index", wheel, cwd=tmp_path)
    robustdd = tmp_path / "venv" / "bin" / "robustdd"
    place = call(python, "-c", "import robustdd_bench as r; print(r.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(packages)
    assert call(robustdd, "--version", cwd=tmp_path) == f"robustdd {__version__}\n"
    shown = call(robustdd, "run", "--method", "mat", "--json", cwd=tmp_path, seconds=1800)
    done = json.loads(shown)
    assert (done["method"], done["track"], done["status"]) == ("mat", "digits-ipc10@2", "complete")
    assert (tmp_path / done["folder"] / "distilled.safetensors").exists()

"""The example that each page of docs/extend begins with is installed and run, as it is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXTEND = ROOT / "docs" / "extend"
FAST = ROOT / "tests" / "data" / "fast.toml"
KINDS = {
    "distiller": ("means", "distillers"),
    "attack": ("one-step", "attacks"),
    "dataset": ("stripes", "datasets"),
    "network": ("two-layers", "networks"),
    "executor": ("here", "executors"),
}


def files_of(text: str) -> dict[str, str]:
    """The files that a page shows, by the path above each."""
    found = re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return dict(found)


def install(folder: Path, files: dict[str, str]) -> Path:
    """Write the files, and what pip would leave of the package; the folder for PYTHONPATH."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (source,) = {Path(name).parent for name in files if name.endswith("pyproject.toml")}
    project = tomllib.loads(files[f"{source}/pyproject.toml"])["project"]
    info = folder / source / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"]
    (info / "METADATA").write_text("".join(lines))
    points = project["entry-points"]["robustdd"].items()
    text = "".join(f"{name} = {target}\n" for name, target in points)
    (info / "entry_points.txt").write_text(f"[robustdd]\n{text}")
    return folder / source


def robustdd(place: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robustdd_bench", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(place), "ROBUSTDD_JOBS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_there_is_a_page_for_each_kind() -> None:
    assert {path.stem for path in EXTEND.glob("*.md")} == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_comes_first_and_is_short(kind: str) -> None:
    text = (EXTEND / f"{kind}.md").read_text(encoding="utf-8")
    files = files_of(text)
    code = "".join(content for name, content in files.items() if name.endswith(".py"))
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 36
    assert text.index("```") < text.index("\n## ")
    assert all(len(line) <= 100 for line in code.splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_runs_as_the_page_says(kind: str, tmp_path: Path) -> None:
    text = (EXTEND / f"{kind}.md").read_text(encoding="utf-8")
    place = install(tmp_path, files_of(text))
    block = text.partition("```console\n")[2].partition("```")[0]
    commands = [line.split() for line in block.splitlines() if line.startswith("robustdd ")]
    assert f"pip install --editable {place.name}\n" in block
    (run,) = [words[1:] for words in commands if words[1] == "run"]
    run = [str(FAST) if word == "digits-ipc1" else word for word in run]
    done = robustdd(place, tmp_path, *run, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, "nothing is left out or put back"
    assert json.loads(done.stdout)["status"] == "complete"
    (record,) = (tmp_path / "runs").glob("*/*/*/record.json")
    said = json.loads(record.read_text())
    name, entries = KINDS[kind]
    used = {
        "distillers": said["method"]["name"],
        "attacks": said["attacks"][0]["name"],
        "datasets": said["data"]["dataset"] if said["data"] else "",
        "networks": said["track"].get("student_network", {}).get("name"),
        "executors": name if "computing students/1" in done.stderr else "",
    }
    assert used[entries] == name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distiller", "attack"])
def test_the_example_passes_the_checks_of_the_benchmark(kind: str, tmp_path: Path) -> None:
    text = (EXTEND / f"{kind}.md").read_text(encoding="utf-8")
    place = install(tmp_path, files_of(text))
    name, _ = KINDS[kind]
    assert f"robustdd check-plugin {name}\n" in text
    done = robustdd(place, tmp_path, "check-plugin", name)
    assert done.returncode == 0, done.stdout + done.stderr

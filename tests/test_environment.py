"""What a record says about machine and code."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustdd_bench.records import environment as module
from robustdd_bench.records.environment import PeakMemory, environment, process, source_commit


def test_the_environment_is_json_and_names_what_decides_speed_and_rounding() -> None:
    found = environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"].startswith("2.")
    assert found["cpu_count"] >= 1
    assert found["processor"]
    assert not found["captured_steps"] or found["cuda"]
    assert not found["tf32_convolutions"] or found["cuda"]


def test_a_package_that_is_not_installed_is_told_as_absent(monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package",))
    assert environment()["packages"] == {"no-such-package": "absent"}


def checkout(tmp_path, monkeypatch):
    """A repository with the code's layout, and the module as if it lay there."""
    code = tmp_path / "robustdd_bench" / "runs"
    code.mkdir(parents=True)
    (code / "environment.py").write_text("")
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard" / "a.json").write_text("1")
    for name in ("plugins", "baselines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for call in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *call], check=True, capture_output=True)
    monkeypatch.setattr(module, "__file__", str(code / "environment.py"))
    return tmp_path


def test_a_commit_is_clean_until_the_code_changes(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    found = source_commit()
    assert len(found["sha"]) == 40
    assert not found["dirty"]
    (root / "leaderboard" / "a.json").write_text("2")
    (root / "notes.txt").write_text("not code")
    assert not source_commit()["dirty"]
    (root / "plugins" / "m.py").write_text("changed = True\n")
    assert source_commit()["dirty"]


def test_a_new_file_of_code_makes_the_commit_dirty(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    (root / "robustdd_bench" / "new.py").write_text("x = 1\n")
    assert source_commit() == {"sha": source_commit()["sha"], "dirty": True}


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source_commit() is None


def test_somebody_else_s_repository_is_not_ours(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    (root / "robustdd_bench").rename(root / "site_packages")
    monkeypatch.setattr(module, "__file__", str(root / "site_packages" / "environment.py"))
    assert source_commit() is None


def test_a_copy_that_is_installed_inside_our_repository_is_not_the_checkout(
    tmp_path, monkeypatch
) -> None:
    root = checkout(tmp_path, monkeypatch)
    copy = root / ".venv" / "lib" / "robustdd_bench" / "runs"
    copy.mkdir(parents=True)
    (copy / "environment.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(copy / "environment.py"))
    assert source_commit() is None


def test_files_that_the_repository_does_not_know_have_no_commit(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    path = root / "robustdd_bench" / "runs" / "environment.py"
    subprocess.run(["git", "-C", str(root), "rm", "-q", "--cached", str(path)], check=True)
    assert source_commit() is None


def test_variables_of_git_lead_to_no_other_repository(tmp_path, monkeypatch) -> None:
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True, capture_output=True)
    (tmp_path / "ours").mkdir()
    checkout(tmp_path / "ours", monkeypatch)
    found = source_commit()
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert found is not None
    assert source_commit() == found


def test_the_commit_of_a_process_is_that_of_its_start(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    process.cache_clear()
    try:
        first = process("cpu").commit
        assert first is not None
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        call = ["commit", "-q", "--allow-empty", "-m", "second"]
        subprocess.run(["git", "-C", str(root), *who, *call], check=True)
        assert source_commit()["sha"] != first.sha
        assert process("cpu").commit == first
    finally:
        process.cache_clear()


@pytest.mark.parametrize("failure", [FileNotFoundError, subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(failure, monkeypatch) -> None:
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(module.subprocess, "run", fail)
    assert source_commit() is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_stage() -> None:
    before = PeakMemory("cpu").read()
    memory = PeakMemory("cpu")
    block = np.ones(200 * 2**20, np.uint8)
    peak = memory.read()
    assert peak >= before + 150 * 2**20
    del block
    assert PeakMemory("cpu").read() < peak


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_does_not_count_what_was_freed_before_and_is_kept() -> None:
    code = (
        "from robustdd_bench.records.environment import PeakMemory\n"
        "from robustdd_bench.toolkit.fast.allocator import keep_memory\n"
        "keep_memory()\n"
        "before = PeakMemory('cpu').read()\n"
        "block = b'x' * (200 * 2**20)\n"
        "del block\n"
        "assert PeakMemory('cpu').read() < before + 100 * 2**20\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_peak_memory_is_known_without_proc(monkeypatch) -> None:
    def missing(*_, **__):
        raise OSError("no /proc")

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    assert PeakMemory("cpu").read() > 2**20

"""Which commit the code that runs is of, and how the version says so."""

from __future__ import annotations

import json
import subprocess

import pytest
from click.testing import CliRunner

from robustdd_bench import __version__
from robustdd_bench.cli.main import cli
from robustdd_bench.records.environment import process
from robustdd_bench.registry import commit as module
from robustdd_bench.registry import installed
from robustdd_bench.registry.commit import full_version, source_commit

SHA = "0123456789abcdef0123456789abcdef01234567"


def checkout(tmp_path, monkeypatch):
    """A repository with the code's layout, and the module as if it lay there."""
    code = tmp_path / "robustdd_bench" / "registry"
    code.mkdir(parents=True)
    (code / "commit.py").write_text("")
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard" / "a.json").write_text("1")
    for name in ("plugins", "baselines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for call in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *call], check=True, capture_output=True)
    monkeypatch.setattr(module, "__file__", str(code / "commit.py"))
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
    monkeypatch.setattr(module, "__file__", str(tmp_path / "commit.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source_commit() is None


def test_somebody_else_s_repository_is_not_ours(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    (root / "robustdd_bench").rename(root / "site_packages")
    monkeypatch.setattr(module, "__file__", str(root / "site_packages" / "commit.py"))
    assert source_commit() is None


def test_a_copy_that_is_installed_inside_our_repository_is_not_the_checkout(
    tmp_path, monkeypatch
) -> None:
    root = checkout(tmp_path, monkeypatch)
    copy = root / ".venv" / "lib" / "robustdd_bench" / "registry"
    copy.mkdir(parents=True)
    (copy / "commit.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(copy / "commit.py"))
    assert source_commit() is None


def test_files_that_the_repository_does_not_know_have_no_commit(tmp_path, monkeypatch) -> None:
    root = checkout(tmp_path, monkeypatch)
    path = root / "robustdd_bench" / "registry" / "commit.py"
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


# --- the version ---------------------------------------------------------------------------------


def test_the_version_of_a_checkout_names_its_commit_and_whether_it_was_changed(
    tmp_path, monkeypatch
) -> None:
    root = checkout(tmp_path, monkeypatch)
    shown = f"{__version__} (commit {source_commit()['sha'][:12]}"
    assert full_version() == f"{shown})"
    (root / "plugins" / "m.py").write_text("changed = True\n")
    assert full_version() == f"{shown}, changed)"
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"robustdd {shown}, changed)\n"


@pytest.fixture
def no_checkout(tmp_path, monkeypatch):
    """An installation that pip made, without a repository around it."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.setattr(module, "__file__", str(place / "robustdd_bench/registry/commit.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    info = place / "robustdd_bench-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustdd-bench\nVersion: 9\n")
    monkeypatch.syspath_prepend(str(place))
    return info


def test_the_version_of_an_installation_from_git_names_the_commit_that_pip_wrote_down(
    no_checkout,
) -> None:
    said = {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": SHA}}
    (no_checkout / "direct_url.json").write_text(json.dumps(said))
    assert full_version() == f"{__version__} (commit {SHA[:12]})"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "no json",
        "[]",
        '{"vcs_info": {}}',
        '{"vcs_info": {"commit_id": 3}}',
        '{"vcs_info": {"commit_id": "\\u001b[31m"}}',
        '{"url": "file:///somewhere", "dir_info": {"editable": true}}',
    ],
)
def test_the_version_alone_is_shown_where_nobody_wrote_a_commit_down(text, no_checkout) -> None:
    if text is not None:
        (no_checkout / "direct_url.json").write_text(text)
    assert full_version() == __version__


def test_a_distribution_that_is_not_installed_has_no_commit(no_checkout) -> None:
    assert installed.installed_commit("not-there-at-all") == ""


def test_without_git_the_version_is_shown(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = CliRunner().invoke(cli, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"robustdd {__version__}\n")

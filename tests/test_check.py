"""`check-plugin` and `new-plugin`, in a group of their own."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from robustdd_bench.cli.check import check_plugin, new_plugin
from robustdd_bench.conformance import check_attack, check_distiller
from robustdd_bench.distillers import Distiller
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import Registry, collect, get_plugin_manager


class Broken(Distiller):
    """Has no configuration."""

    def distill(self, task: Any, reporter: Any) -> Any:
        raise RuntimeError("not today")


def _registry(**targets: str) -> Registry:
    """A registry of methods; a name that ends in _attack is registered as an attack."""

    class Plugin:
        @hookimpl
        def robustdd_register_distillers(self, register: Any) -> None:
            for name, target in targets.items():
                if not name.endswith("_attack"):
                    register(name, target)

        @hookimpl
        def robustdd_register_attacks(self, register: Any) -> None:
            for name, target in targets.items():
                if name.endswith("_attack"):
                    register(name.removesuffix("_attack"), target)

    return collect(get_plugin_manager(extra=[("mine", Plugin())], entry_points=False))


def _run(*args: str, registry: Registry | None = None) -> Result:
    group = click.Group("robustdd")
    group.add_command(check_plugin)
    group.add_command(new_plugin)
    return CliRunner().invoke(group, args, obj=SimpleNamespace(registry=registry or _registry()))


NEW = {"method": "my-way", "attack": "my-hit", "executor": "my-pool"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A new plugin of each kind, importable."""
    folders = {}
    for kind, name in NEW.items():
        result = _run("new-plugin", name, "--kind", kind, "--into", str(tmp_path))
        assert result.exit_code == 0, result.output
        folders[kind] = tmp_path / f"robustdd-{name}"
        monkeypatch.syspath_prepend(str(folders[kind]))
    yield folders
    for name in [name for name in sys.modules if name.startswith("robustdd_my_")]:
        del sys.modules[name]


def _made_registry() -> Registry:
    names = [name.replace("-", "_") for name in NEW.values()]
    plugins = [(name, importlib.import_module(f"robustdd_{name}")) for name in names]
    return collect(get_plugin_manager(extra=plugins, entry_points=False))


# --- new-plugin ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("method", "my-way"), ("attack", "my-hit")])
def test_a_new_plugin_passes_every_check(made: dict[str, Path], kind: str, name: str) -> None:
    registry = _made_registry()
    if kind == "method":
        findings = check_distiller(registry.get("distillers", name))
    else:
        findings = check_attack(registry.get("attacks", name))
    assert [finding for finding in findings if not finding.passed] == []
    result = _run("check-plugin", name, registry=registry)
    assert result.exit_code == 0
    assert f"{kind} {name!r}: all checks passed" in result.stdout


def test_a_new_executor_passes_every_check(made: dict[str, Path]) -> None:
    call = ("check-plugin", "my-pool", "--executor-set", "workers=1")
    result = _run(*call, registry=_made_registry())
    assert result.exit_code == 0, result.output
    assert "executor 'my-pool': all checks passed" in result.stdout
    assert "workers=1" in result.stdout
    assert "not checked" not in result.stdout, "its processes are seen at work"


def test_options_of_an_executor_are_for_executors_and_are_checked_first() -> None:
    for name, word, line in (
        ("processes", "jobs=many", "executor 'processes': jobs"),
        ("processes", "job=1", "executor 'processes': unknown key 'job'; did you mean 'jobs'?"),
        ("processes", "jobs", "needs key=value, not 'jobs'"),
        ("good", "jobs=1", "--executor-set is for executors; 'good' is registered as method"),
    ):
        registry = _registry(good="a:b")
        result = _run("check-plugin", name, "--executor-set", word, registry=registry)
        assert isinstance(result.exception, UsageError)
        assert line in str(result.exception)
        assert "\n" not in str(result.exception)


def test_the_files_of_a_new_plugin_fit_together(made: dict[str, Path]) -> None:
    folder = made["method"]
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "robustdd-my-way"
    assert project["project"]["entry-points"]["robustdd"] == {"my-way": "robustdd_my_way"}
    assert (folder / "robustdd_my_way" / "distiller.py").exists()
    assert "class MyWay(Distiller)" in (folder / "robustdd_my_way" / "distiller.py").read_text()
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text())
    for path in folder.rglob("*.*"):
        assert "$" not in path.read_text()


def test_registering_a_new_plugin_does_not_import_torch(made: dict[str, Path]) -> None:
    code = "import sys, robustdd_my_way, robustdd_my_hit, robustdd_my_pool as _; "
    code += "print('torch' in sys.modules)"
    path = os.pathsep.join(map(str, made.values()))
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert result.stdout == "False\n"


def test_new_plugin_lists_the_files_and_says_what_comes_next(tmp_path: Path) -> None:
    result = _run("new-plugin", "my-way", "--into", str(tmp_path / "deep" / "er"))
    files = [Path(line) for line in result.stdout.splitlines()]
    assert len(files) == 5
    assert all(path.is_file() for path in files)
    assert "pip install --editable" in result.stderr
    assert "robustdd check-plugin my-way --kind method" in result.stderr


@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_nothing_is_ever_overwritten(what: str, tmp_path: Path) -> None:
    place = tmp_path / "robustdd-my-way"
    if what == "folder":
        place.mkdir()
    elif what == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    result = _run("new-plugin", "my-way", "--into", str(tmp_path))
    assert isinstance(result.exception, UsageError)
    assert "robustdd-my-way exists" in str(result.exception)
    assert [path.name for path in tmp_path.rglob("*")] == ["robustdd-my-way"]


@pytest.mark.parametrize("name", ["My", "my_way", "-x", "x-", "a--b", "../x", "a b", "1a", "", "é"])
def test_an_unfit_name_is_refused(name: str, tmp_path: Path) -> None:
    result = _run("new-plugin", "--into", str(tmp_path), "--", name)
    assert isinstance(result.exception, UsageError)
    assert "cannot be the name of a plugin" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bench", "mine", "used", "convnet", "mat"])
def test_a_name_that_is_installed_is_refused(name: str, tmp_path: Path) -> None:
    result = _run("new-plugin", name, "--into", str(tmp_path), registry=_registry(used="a:b"))
    assert isinstance(result.exception, UsageError)
    assert "is taken by what is installed" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    result = _run("new-plugin", "my-way", "--into", str(tmp_path))
    assert isinstance(result.exception, RunFailedError)
    assert "No space left on device" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


# --- check-plugin ----------------------------------------------------------------------------


def test_a_failed_check_is_exit_code_1_and_says_which() -> None:
    result = _run("check-plugin", "bad", registry=_registry(bad=f"{__name__}:Broken"))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["ok", "class", "Broken", "is", "a", "complete", "Distiller"]
    assert lines[1].startswith("FAIL  config")
    assert "has no dataclass called Config" in lines[1]
    assert lines[-1].endswith("checks failed")


def test_findings_can_be_had_as_json(made: dict[str, Path]) -> None:
    result = _run("check-plugin", "my-hit", "--json", registry=_made_registry())
    report = json.loads(result.stdout)
    assert (report["kind"], report["name"], report["plugin"]) == ("attack", "my-hit", "my_hit")
    assert report["passed"] is True
    assert {"check", "passed", "detail"} == set(report["findings"][0])
    bad = _run("check-plugin", "bad", "--json", registry=_registry(bad=f"{__name__}:Broken"))
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["passed"] is False


def test_an_unknown_name_is_met_with_a_suggestion() -> None:
    result = _run("check-plugin", "goood", registry=_registry(good="a:b"))
    assert isinstance(result.exception, UsageError)
    assert (
        str(result.exception) == "unknown method, attack or executor 'goood'; did you mean 'good'?"
    )


def test_a_name_of_both_kinds_needs_the_kind() -> None:
    registry = _registry(both=f"{__name__}:Broken", both_attack="a:b")
    result = _run("check-plugin", "both", registry=registry)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "'both' is a method and an attack; say which with --kind"
    method = _run("check-plugin", "both", "--kind", "method", "--json", registry=registry)
    assert json.loads(method.stdout)["kind"] == "method"
    attack = _run("check-plugin", "both", "--kind", "attack", "--json", registry=registry)
    assert json.loads(attack.stdout)["kind"] == "attack"
    assert attack.exit_code == 1


def test_without_a_session_the_installed_plugins_are_found() -> None:
    group = click.Group("robustdd")
    group.add_command(check_plugin)
    group.add_command(new_plugin)
    result = CliRunner().invoke(group, ["check-plugin", "no-such-name-at-all"])
    assert isinstance(result.exception, UsageError)


def test_the_commands_are_imported_without_torch() -> None:
    code = "import sys, robustdd_bench.cli.check; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"

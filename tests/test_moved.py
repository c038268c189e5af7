"""Old import paths of what authors of plugins use: the same modules, and a word about the new."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from robustdd_bench.moved import MOVED, find_old_names

PACKAGES = {"sanity": "student_checks", "statistics": "means"}
"""Packages of `evaluation` whose name a module had before."""


def _forget(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    """As in a process in which nobody has imported the old name yet."""
    package, _, name = old.rpartition(".")
    monkeypatch.delitem(sys.modules, old, raising=False)
    monkeypatch.delattr(importlib.import_module(package), name, raising=False)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = f"robustdd_bench.{old}", f"robustdd_bench.{MOVED[old]}"
    new = importlib.import_module(after)
    spec = new.__spec__
    _forget(monkeypatch, before)
    with pytest.warns(DeprecationWarning, match=f"{before} has moved: import {after}$") as told:
        assert importlib.import_module(before) is new
    assert len(told) == 1
    assert (new.__name__, new.__spec__) == (after, spec)
    assert importlib.import_module(after) is new


def test_both_forms_of_import_work_and_the_warning_points_at_them(tmp_path, monkeypatch) -> None:
    for old in ("toolkit.blocks", "toolkit.seeds", "toolkit.unroll"):
        _forget(monkeypatch, f"robustdd_bench.{old}")
    (tmp_path / "author.py").write_text(
        "from robustdd_bench.toolkit import blocks\n"
        "from robustdd_bench.toolkit.seeds import isolated_rng\n"
        "import robustdd_bench.toolkit.unroll as unroll\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(DeprecationWarning, match="has moved") as told:
        author = importlib.import_module("author")
    assert [(one.filename, one.lineno) for one in told] == [
        (str(tmp_path / "author.py"), line) for line in (1, 2, 3)
    ]
    from robustdd_bench import seeds
    from robustdd_bench.toolkit.fast import blocks
    from robustdd_bench.toolkit.trajectories import unroll

    assert author.blocks is blocks
    assert author.isolated_rng is seeds.isolated_rng
    assert author.unroll is unroll


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_was_a_module_gives_what_the_module_held(package: str) -> None:
    was = importlib.import_module(f"robustdd_bench.evaluation.{package}")
    new = importlib.import_module(f"{was.__name__}.{PACKAGES[package]}")
    names = [
        name
        for name, value in vars(new).items()
        if getattr(value, "__module__", None) == new.__name__ and not name.startswith("_")
    ]
    assert names
    for name in names:
        with pytest.warns(DeprecationWarning, match=f"import {new.__name__}.{name}$"):
            assert getattr(was, name) is getattr(new, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        was.nothing  # noqa: B018


def test_a_name_that_never_was_is_not_found() -> None:
    for name in ("robustdd_bench.toolkit.nothing", "robustdd_bench.nothing"):
        with pytest.raises(ModuleNotFoundError, match=name):
            importlib.import_module(name)


def test_old_names_are_looked_for_once_and_last_and_cost_no_torch() -> None:
    before = list(sys.meta_path)
    find_old_names()
    assert sys.meta_path == before
    code = (
        "import sys, robustdd_bench;print(type(sys.meta_path[-1]).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["_OldNames", "False"]


def test_every_new_name_is_a_module_and_no_old_name() -> None:
    for old, new in MOVED.items():
        assert new not in MOVED, old
        assert importlib.util.find_spec(f"robustdd_bench.{new}") is not None

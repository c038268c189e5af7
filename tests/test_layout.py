"""Where code is, and what it is called."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import robustdd_bench
from robustdd_bench import filenames

PACKAGE = Path(robustdd_bench.__file__).parent
ROOT = PACKAGE.parent
LONGEST = 400
FLAT = 17
"""Modules of one folder, beside its `__init__` and `__main__`."""


def test_no_module_is_longer_than_its_readers_patience() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for part in ("robustdd_bench", "plugins", "baselines", "scripts", "benchmarks")
        for path in (ROOT / part).rglob("*.py")
    }
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_folder_of_the_harness_is_a_long_list() -> None:
    modules = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        if not path.stem.startswith("__"):
            modules[path.parent.relative_to(PACKAGE).as_posix()].append(path.stem)
    assert {folder: len(names) for folder, names in modules.items() if len(names) > FLAT} == {}


def test_a_class_has_a_name_of_its_own() -> None:
    places = defaultdict(list)
    for part in ("robustdd_bench", "plugins"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_names_of_files_are_written_once() -> None:
    names = {
        value
        for name, value in vars(filenames).items()
        if name.isupper() and not name.endswith("_FOLDER")
    }
    assert "record.json" in names
    written = [
        f"{path.relative_to(PACKAGE).as_posix()}: {node.value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem != "filenames"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert written == []

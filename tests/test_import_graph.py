"""Imports go one way: no circle, and no arrow upwards.

Read from the sources. Imports inside functions count: they are as much a dependence as others, only
later. So do imports for type checking alone: who reads a module has to know what its types are.
Not counted: `from robustdd_bench import __version__` (the package imports nothing of what is
above), and what is named in strings, such as the targets of commands and plugins.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import robustdd_bench

ROOT = Path(robustdd_bench.__file__).parent

GROUND = (
    "errors filenames files identity moved registry seeds strict text "
    "guard hookspecs config plugins citations signatures"
)
INTERFACES = "attacks distillers executors"
LEVELS = tuple(
    set(level.split())
    for level in (
        GROUND,
        "protocol",
        INTERFACES,
        "toolkit",
        "evaluation imports",
        "records",
        "drawing",
        "runs",
        "sweeps board report transfers",
        "verification conformance papers",
        "exports",
        "hub",
        "entrance",
        "api",
        "cli",
        "__main__",
    )
)
"""From the ground up: a part imports itself and what is in a lower level. Parts of the ground
floor, and interfaces, import one another too; only circles are forbidden there."""

PEERS = (0, LEVELS.index(set(INTERFACES.split())))


def _files() -> dict[str, Path]:
    """Each module of the package, without the package's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]
    return found


def _imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports; a name in a package counts as the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, inside = name.partition(".")
            if top == "robustdd_bench":
                if inside not in modules:
                    inside = inside.rpartition(".")[0]
                if inside:
                    yield inside


@cache
def graph() -> dict[str, list[str]]:
    """What each module imports."""
    modules = _files()
    return {name: sorted(set(_imported(path, modules)) - {name}) for name, path in modules.items()}


def circles(imports: Mapping[str, list[str]]) -> list[list[str]]:
    """Modules that can be reached from one another: each group of them once, sorted."""
    reached = {name: _reached(name, imports) for name in imports}
    groups = {
        tuple(sorted(other for other in found if name in reached[other]))
        for name, found in reached.items()
        if name in found
    }
    return sorted(map(list, groups))


def _reached(start: str, imports: Mapping[str, list[str]]) -> set[str]:
    """All that a module imports, directly or not; itself where it is in a circle."""
    seen: set[str] = set()
    ahead = list(imports[start])
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += imports[name]
    return seen


def level(module: str) -> int:
    part = module.partition(".")[0]
    found = [number for number, parts in enumerate(LEVELS) if part in parts]
    assert len(found) == 1, f"{module}: give it a level"
    return found[0]


def upward(imports: Mapping[str, list[str]]) -> list[str]:
    """Imports of a higher level, and of another part of the same one."""
    return [
        f"{module} -> {other}"
        for module, others in imports.items()
        for other in others
        if level(other) > level(module)
        or (level(other) == level(module) and not _peers(module, other))
    ]


def _peers(module: str, other: str) -> bool:
    return level(module) in PEERS or module.partition(".")[0] == other.partition(".")[0]


def test_there_is_no_circle() -> None:
    assert circles(graph()) == []


def test_no_import_goes_upwards() -> None:
    assert upward(graph()) == []


def test_every_part_has_a_level_and_every_level_its_parts() -> None:
    parts = {module.partition(".")[0] for module in graph()}
    assert parts == set.union(*LEVELS)


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"], "c": ["a"]}, [["a", "b"]]),
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["e"], "e": ["d"]}, [[*"abc"], [*"de"]]),
        ({"a": ["b", "c"], "b": ["a"], "c": ["a"]}, [["a", "b", "c"]]),
    ],
)
def test_circles_are_found(imports: dict[str, list[str]], found: list[list[str]]) -> None:
    assert circles(imports) == found


def test_arrows_upwards_are_found() -> None:
    down = {"cli.run": ["runs.pipeline", "errors"], "board.rows": ["board.schema"]}
    assert upward(down) == []
    up = {
        "attacks": ["toolkit.loop"],
        "board.rows": ["report.write"],
        "errors": ["protocol.vit"],
    }
    assert upward(up) == [f"{module} -> {others[0]}" for module, others in up.items()]


def test_imports_in_functions_and_for_types_count(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import robustdd_bench.cli.main\n"
        "from robustdd_bench import errors, __version__\n"
        "from robustdd_bench.protocol.tracks import Track, load_track\n"
        "from robustdd_bench.evaluation.sanity import no_module\n"
        "if TYPE_CHECKING:\n    from robustdd_bench.board import rows\n"
        "def later():\n    from robustdd_bench.seeds import Seeds\n"
    )
    assert sorted(_imported(path, _files())) == [
        "board.rows",
        "cli.main",
        "errors",
        "evaluation.sanity",
        "protocol.tracks",
        "protocol.tracks",
        "seeds",
    ]

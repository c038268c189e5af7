"""Plugins: found one by one, named when broken, never imported by the harness itself."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustdd_bench import hookspecs
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import (
    DISABLED_VARIABLE,
    KINDS,
    PluginWarning,
    Registry,
    collect,
    get_plugin_manager,
)
from robustdd_bench.registry import installed

ROOT = Path(__file__).resolve().parents[1]
HARNESS = ROOT / "robustdd_bench"
PLUGIN_FOLDERS = sorted(
    path
    for parent in (ROOT / "plugins", ROOT / "baselines")
    for path in parent.glob("robustdd_*")
    if (path / "__init__.py").exists()
)


def plugin(**hooks: Callable[..., Any]) -> types.SimpleNamespace:
    """A plugin with hooks of the given names."""
    return types.SimpleNamespace(**{name: hookimpl(hook) for name, hook in hooks.items()})


def offers(name: str, target: str = "collections:OrderedDict") -> types.SimpleNamespace:
    """A plugin that registers one method."""

    def robustdd_register_distillers(register: Callable[..., None]) -> None:
        register(name, target, "a method")

    return plugin(robustdd_register_distillers=robustdd_register_distillers)


def methods(registry: Registry) -> list[str]:
    """Names of the methods that are not the harness's own."""
    entries = registry.entries["distillers"]
    return [name for name, entry in entries.items() if entry.plugin != "builtin"]


class FakePoint:
    """An entry point of an installed distribution."""

    def __init__(self, name: str, load: Callable[[], object], distribution: str = "dist") -> None:
        self.name = name
        self.value = f"module_of_{name}"
        self.distribution, self.version = distribution, "1.2"
        self.load = load


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these and no other entry points are installed."""

    def _install(*points: FakePoint) -> None:
        monkeypatch.setattr(installed, "entry_points", lambda group: list(points))

    monkeypatch.delenv(DISABLED_VARIABLE, raising=False)
    return _install


@pytest.fixture
def real_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A distribution on the path as pip leaves it, with one entry point that registers a method."""
    (tmp_path / "stranger.py").write_text(
        "from robustdd_bench.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def robustdd_register_distillers(register):\n"
        "    register('stranger', 'stranger_heavy:Method', 'from outside')\n"
    )
    info = tmp_path / "robustdd_stranger-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustdd-stranger\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[robustdd]\nstranger = stranger\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(DISABLED_VARIABLE, raising=False)
    yield "stranger"
    sys.modules.pop("stranger", None)


# --- finding plugins -------------------------------------------------------------------------


def test_an_installed_distribution_is_found_and_its_target_stays_unimported(
    real_distribution: str,
) -> None:
    registry = collect(get_plugin_manager())
    entry = registry.get("distillers", "stranger")
    assert (entry.plugin, entry.summary) == ("stranger", "from outside")
    assert "stranger_heavy" not in sys.modules
    info = registry.plugins["stranger"]
    assert (info.distribution, info.version, info.status) == ("robustdd-stranger", "0.3", "loaded")


def test_the_plugins_of_this_distribution_load_without_a_warning() -> None:
    infos = collect(get_plugin_manager()).plugins
    ours = {name for name, info in infos.items() if info.distribution == "robustdd-bench"}
    assert {"builtin", "mat", "mtt", "coresets", "attacks"} <= ours
    assert {infos[name].status for name in ours} == {"loaded"}


def test_a_broken_plugin_is_named_in_a_warning_and_the_rest_works(
    install: Callable[..., None],
) -> None:
    def fail() -> object:
        raise ImportError("no module named torch_xyz")

    install(FakePoint("bad", fail, "robustdd-bad"), FakePoint("good", lambda: offers("fine")))
    with pytest.warns(PluginWarning, match=r"'bad' \(robustdd-bad\) is left out: ImportError: no"):
        manager = get_plugin_manager()
    registry = collect(manager)
    assert methods(registry) == ["fine"]
    assert registry.plugins["bad"].status == "broken"
    assert registry.plugins["bad"].problem == "ImportError: no module named torch_xyz"


def test_disabled_plugins_are_listed_but_not_imported(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> object:
        raise AssertionError("a disabled plugin was imported")

    install(FakePoint("one", fail), FakePoint("two", fail), FakePoint("good", lambda: offers("m")))
    monkeypatch.setenv(DISABLED_VARIABLE, " one, two,")
    registry = collect(get_plugin_manager())
    assert registry.plugins["one"].status == registry.plugins["two"].status == "disabled"
    assert methods(registry) == ["m"]


def test_two_plugins_of_one_name_are_an_error_that_names_both(
    install: Callable[..., None],
) -> None:
    install(
        FakePoint("twin", lambda: offers("a"), "dist-one"),
        FakePoint("twin", lambda: offers("b"), "dist-two"),
    )
    with pytest.raises(UsageError, match=r"'twin': .*\(dist-one\) and .*\(dist-two\)"):
        get_plugin_manager()


def test_no_plugin_may_take_the_name_of_the_built_in_one(install: Callable[..., None]) -> None:
    install(FakePoint("builtin", lambda: offers("a")))
    with pytest.raises(UsageError, match=r"two plugins are called 'builtin'"):
        get_plugin_manager()


def test_every_manager_is_a_new_one(install: Callable[..., None]) -> None:
    install()
    first = get_plugin_manager(extra=[("mine", offers("m"))])
    assert methods(collect(first)) == ["m"]
    assert methods(collect(get_plugin_manager())) == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_hook_whose_registrations_are_collected(kind: str) -> None:
    def hook(register: Callable[..., None]) -> None:
        register("mine", "package:thing", "summary")

    manager = get_plugin_manager(
        extra=[("p", plugin(**{f"robustdd_register_{kind}": hook}))], entry_points=False
    )
    entry = collect(manager).get(kind, "mine")
    assert (entry.kind, entry.target, entry.plugin) == (kind, "package:thing", "p")


# --- hooks -----------------------------------------------------------------------------------


def test_a_hook_that_does_not_exist_is_refused_and_leaves_nothing_behind(
    install: Callable[..., None],
) -> None:
    bad = offers("half")
    bad.robustdd_register_distiller = hookimpl(lambda register: None)
    install(FakePoint("typo", lambda: bad))
    with pytest.warns(PluginWarning, match=r"'typo'.*robustdd_register_distiller"):
        manager = get_plugin_manager()
    assert methods(collect(manager)) == []


def test_a_hook_with_an_unknown_argument_is_refused_and_leaves_nothing_behind(
    install: Callable[..., None],
) -> None:
    def robustdd_register_tracks(register: Any, colour: Any) -> None:
        raise AssertionError("never called")

    bad = offers("half")
    bad.robustdd_register_tracks = hookimpl(robustdd_register_tracks)
    install(FakePoint("wrong", lambda: bad), FakePoint("good", lambda: offers("fine")))
    with pytest.warns(PluginWarning, match=r"'wrong'.*colour") as caught:
        manager = get_plugin_manager()
    assert "\n" not in str(caught[0].message)
    registry = collect(manager)
    assert methods(registry) == ["fine"]
    assert registry.plugins["wrong"].status == "broken"


def test_a_plugin_whose_registration_raises_is_named_in_a_warning_and_the_rest_works() -> None:
    def robustdd_register_distillers(register: Any) -> None:
        register("half", "types:SimpleNamespace")

    def robustdd_register_attacks(register: Any) -> None:
        raise KeyError("oops")

    bad = plugin(
        robustdd_register_distillers=robustdd_register_distillers,
        robustdd_register_attacks=robustdd_register_attacks,
    )
    good = offers("m", "types:SimpleNamespace")
    manager = get_plugin_manager(extra=[("bad", bad), ("good", good)], entry_points=False)
    with pytest.warns(
        PluginWarning, match=r"'bad'.*left out: robustdd_register_attacks failed: KeyError: 'oops'"
    ):
        registry = collect(manager)
    assert registry.names("distillers") == ["m"], "nothing of the broken plugin is registered"
    assert registry.plugins["bad"].status == "broken"
    assert "KeyError" in registry.plugins["bad"].problem


def _specs() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("robustdd")]


def test_every_hook_carries_the_prefix_and_one_line_of_documentation() -> None:
    functions = [
        name
        for name, value in vars(hookspecs).items()
        if inspect.isfunction(value) and value.__module__ == hookspecs.__name__
    ]
    assert functions == _specs()
    for name in functions:
        assert name.startswith("robustdd_")
        assert len((inspect.getdoc(getattr(hookspecs, name)) or "").splitlines()) == 1


def test_the_hook_specifications_fit_on_one_screen() -> None:
    assert len(inspect.getsource(hookspecs).splitlines()) <= 60


# --- the registry ----------------------------------------------------------------------------


def test_two_owners_of_one_name_are_an_error_that_names_both() -> None:
    manager = get_plugin_manager(
        extra=[("first", offers("m")), ("second", offers("m"))], entry_points=False
    )
    with pytest.raises(UsageError, match=r"method 'm' is registered by two plugins") as caught:
        collect(manager)
    assert "'first'" in str(caught.value)
    assert "'second'" in str(caught.value)
    assert DISABLED_VARIABLE in str(caught.value)


def test_one_name_may_be_used_for_two_kinds() -> None:
    def attacks(register: Any) -> None:
        register("m", "a:b")

    extra = offers("m")
    extra.robustdd_register_attacks = hookimpl(attacks)
    registry = collect(get_plugin_manager(extra=[("p", extra)], entry_points=False))
    assert registry.get("attacks", "m").target == "a:b"
    assert registry.get("distillers", "m").target == "collections:OrderedDict"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digits-ipc11", "did you mean 'digits-ipc1"), ("zzz", "known: cifar10-ipc1, cifar10-ipc10")],
)
def test_an_unknown_name_is_met_with_the_nearest_or_with_all(name: str, hint: str) -> None:
    registry = collect(get_plugin_manager(entry_points=False))
    with pytest.raises(UsageError, match=f"unknown track '{name}'; {hint}"):
        registry.get("tracks", name)


def test_an_unknown_name_where_nothing_is_installed_says_so() -> None:
    registry = collect(get_plugin_manager(entry_points=False))
    assert registry.names("attacks") == []
    with pytest.raises(UsageError, match="unknown attack 'pgd'; none are installed"):
        registry.get("attacks", "pgd")


def test_a_target_is_imported_when_it_is_used() -> None:
    manager = get_plugin_manager(extra=[("p", offers("m", "types:SimpleNamespace"))])
    assert collect(manager).get("distillers", "m").load() is types.SimpleNamespace


def test_a_target_without_a_colon_is_refused_when_it_is_registered() -> None:
    manager = get_plugin_manager(extra=[("p", offers("m", "no.colon"))], entry_points=False)
    with pytest.warns(PluginWarning, match=r"'p'.*the target of method 'm' must read .*no\.colon"):
        registry = collect(manager)
    assert registry.plugins["p"].status == "broken"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module_xyz:A", "ModuleNotFoundError"),
        ("types:Missing", "AttributeError"),
        (":A", "ValueError"),
    ],
)
def test_a_target_that_cannot_be_loaded_names_plugin_name_and_target(
    target: str, reason: str
) -> None:
    manager = get_plugin_manager(extra=[("p", offers("m", target))], entry_points=False)
    entry = collect(manager).get("distillers", "m")
    with pytest.raises(PluginError, match=rf"plugin 'p': cannot load method 'm' \({target}\)") as e:
        entry.load()
    assert reason in str(e.value)


# --- imports go one way ----------------------------------------------------------------------


def _imports(file: Path, package: str) -> set[str]:
    """Modules a file imports, inside functions too; those for type checking only left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for child in node.body for inner in ast.walk(child))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def _project_imports(file: Path, top: Path) -> set[str]:
    package = ".".join(file.relative_to(top.parent).parent.parts)
    return {name for name in _imports(file, package) if name.split(".")[0].startswith("robustdd")}


def test_the_harness_imports_no_plugin() -> None:
    for file in sorted(HARNESS.rglob("*.py")):
        foreign = {
            name
            for name in _project_imports(file, HARNESS)
            if name.split(".")[0] != "robustdd_bench"
        }
        assert not foreign, f"{file.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS, ids=lambda path: path.name)
def test_a_plugin_imports_the_harness_and_no_other_plugin(folder: Path) -> None:
    for file in sorted(folder.rglob("*.py")):
        foreign = {
            name
            for name in _project_imports(file, folder)
            if name.split(".")[0] not in ("robustdd_bench", folder.name)
        }
        assert not foreign, f"{file.relative_to(ROOT)} imports {sorted(foreign)}"


def test_loading_and_listing_plugins_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from robustdd_bench.plugins import collect, get_plugin_manager; "
        "collect(get_plugin_manager()); "
        "print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"

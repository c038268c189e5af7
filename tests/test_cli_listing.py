"""`robustdd list`, `show` and `plugins`, and the tables they print."""

import importlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strangers

from robustdd_bench.cli.listing import KINDS
from robustdd_bench.cli.main import main
from robustdd_bench.cli.shared.output import jsonable, plain_table, print_json
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.tracks import load_track


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROBUSTDD_DEBUG", "ROBUSTDD_DISABLED_PLUGINS", "_ROBUSTDD_COMPLETE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Install plugins of strangers for this test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def _install(name: str, code: str) -> None:
        strangers.install(tmp_path, name, code)
        importlib.invalidate_caches()

    yield _install
    for module in [name for name in sys.modules if name.startswith("stranger_")]:
        del sys.modules[module]


@pytest.fixture
def as_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The JSON that a command prints; no call in these tests may complain."""

    def _as_json(*args: str, code: int = 0) -> Any:
        assert main([*args, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return _as_json


def on_a_terminal(*args: str, **env: str) -> str:
    """What `robustdd` writes to stdout where stdout is a terminal."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    result = subprocess.run(
        [sys.executable, "-m", "robustdd_bench", *args],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        env=environment | {"TERM": "xterm-256color", "COLUMNS": "120"} | env,
        check=True,
    )
    os.close(slave)
    assert result.stderr == b""
    text = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not block:
            break
        text += block
    os.close(master)
    return text.decode()


# --- list ------------------------------------------------------------------------------------


def test_list_shows_every_kind_and_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    registry = collect(get_plugin_manager())
    for word, kind in KINDS.items():
        assert f"{word}\n" in shown.out
        for name in registry.names(kind):
            assert re.search(rf"^{re.escape(name)}  ", shown.out, re.MULTILINE), name


@pytest.mark.parametrize(("word", "kind"), KINDS.items())
def test_list_of_one_kind_is_that_kind_of_the_registry(
    word: str, kind: str, as_json: Callable[..., Any]
) -> None:
    entries = collect(get_plugin_manager()).entries[kind]
    assert as_json("list", word) == {
        word: [
            {"name": e.name, "plugin": e.plugin, "summary": e.summary, "target": e.target}
            for e in entries.values()
        ]
    }


def test_list_as_json_holds_all_kinds(as_json: Callable[..., Any]) -> None:
    assert list(as_json("list")) == list(KINDS)


def test_a_strangers_method_is_listed_and_its_control_characters_are_not(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("odd", strangers.method("odd", summary="red \x1b[31m\nline"))
    assert main(["list", "methods"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^odd +odd +red \[31m line$", shown, re.MULTILINE)
    assert "\x1b" not in shown


def test_a_name_with_two_owners_is_an_error_that_names_both(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("one", strangers.method("m"))
    install("two", strangers.method("m"))
    assert main(["list"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "'one'" in shown.err
    assert "'two'" in shown.err


# --- tables ----------------------------------------------------------------------------------


def test_a_table_in_a_pipe_is_aligned_plain_text() -> None:
    text = plain_table(
        ("name", "score"), [("a", "1.5"), ("long", "10.25")], title="figures", right=("score",)
    )
    assert text == "figures\nname  score\na       1.5\nlong  10.25\n"


def test_an_empty_table_says_so() -> None:
    assert plain_table(("name",), [], title="methods") == "methods\n(none)\n"


def test_a_table_on_a_terminal_is_drawn_and_coloured() -> None:
    shown = on_a_terminal("list", "networks")
    assert "\x1b[" in shown
    assert "─" in shown
    assert "convnet" in shown


def test_no_colour_means_no_escape_codes() -> None:
    shown = on_a_terminal("list", "networks", NO_COLOR="1")
    assert "\x1b" not in shown
    assert "convnet" in shown


def test_a_dumb_terminal_gets_plain_text() -> None:
    shown = on_a_terminal("list", "networks", TERM="dumb")
    assert "\x1b" not in shown
    assert "─" not in shown


def test_json_is_ascii_and_never_holds_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"π": float("nan"), "x": (1, float("inf"), 0.5), "p": Path("a/b"), "n": None})
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"π": None, "x": [1, None, 0.5], "p": "a/b", "n": None}
    assert jsonable({1: {2}}) == {"1": [2]}


# --- show ------------------------------------------------------------------------------------


def test_show_attack_tells_origin_and_configuration(as_json: Callable[..., Any]) -> None:
    found = as_json("show", "attack", "pgd")
    assert (found["kind"], found["name"], found["plugin"]) == ("attack", "pgd", "attacks")
    assert found["distribution"] == "robustdd-bench"
    assert found["doc"]
    steps = next(item for item in found["config"] if item["name"] == "steps")
    assert steps["type"] == "int"
    assert steps["default"] == 20
    assert steps["doc"]


def test_show_method_prints_every_hyper_parameter(
    capsys: pytest.CaptureFixture[str], as_json: Callable[..., Any]
) -> None:
    found = as_json("show", "method", "mat")
    assert main(["show", "method", "mat"]) == 0
    shown = capsys.readouterr().out
    assert "settings (--set key=value): " in shown
    assert found["summary"] in shown
    assert len(found["config"]) > 10
    for item in found["config"]:
        assert re.search(rf"^{item['name']}  ", shown, re.MULTILINE), item["name"]


def test_show_names_the_plugin_whose_method_does_not_import(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("faulty", strangers.method("faulty", "no_such_module_xyz:Method"))
    assert main(["show", "method", "faulty"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: plugin 'faulty': cannot load method 'faulty'")
    assert shown.err.count("\n") == 1


def test_show_track_prints_every_field_the_hash_and_the_command(
    capsys: pytest.CaptureFixture[str], as_json: Callable[..., Any]
) -> None:
    track = load_track("digits-ipc10", collect(get_plugin_manager()))
    found = as_json("show", "track", "digits-ipc10")
    assert found["fields"] == track.model_dump(mode="json")
    assert (found["sha256"], found["id"]) == (track.sha256(), track.id)
    assert main(["show", "track", "digits-ipc10"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^threat.ladder +0\.05, 0\.10, 0\.15, 0\.20$", shown, re.MULTILINE)
    assert re.search(rf"^sha256 +{track.sha256()}$", shown, re.MULTILINE)
    assert shown.endswith("\nrobustdd run --method mat --track digits-ipc10\n")


def test_show_track_reads_a_file_of_the_users(tmp_path: Path, as_json: Callable[..., Any]) -> None:
    from robustdd_bench.protocol import tracks

    source = Path(tracks.__file__).with_name("tracks") / "digits-ipc1.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(source.read_text().replace('name = "digits-ipc1"', 'name = "mine"'))
    found = as_json("show", "track", str(mine))
    assert (found["name"], found["plugin"]) == ("mine", "")
    assert found["command"] == f"robustdd run --method mat --track {mine}"


def test_an_ill_formed_track_is_one_line_with_file_key_and_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("nmae = 'x'\n")
    assert main(["show", "track", str(mine)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert f"{mine}" in shown
    assert "nmae" in shown


# --- plugins ---------------------------------------------------------------------------------


def test_plugins_tells_what_each_registers(as_json: Callable[..., Any]) -> None:
    found = as_json("plugins")
    assert found["conflict"] is None
    plugins = {item["name"]: item for item in found["plugins"]}
    assert found["plugins"][0]["name"] == "builtin"
    assert "track digits-ipc10" in plugins["builtin"]["registers"]
    assert "attack pgd" in plugins["attacks"]["registers"]
    assert all(item["status"] == "loaded" for item in plugins.values())


def test_broken_and_disabled_plugins_are_shown_and_are_no_failure(
    install: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("absent", "import no_such_module_xyz\n")
    install("asleep", strangers.method("asleep"))
    install("faulty", "@hookimpl\ndef robustdd_register_attacks(register):\n    1 / 0\n")
    monkeypatch.setenv("ROBUSTDD_DISABLED_PLUGINS", "asleep")
    assert main(["plugins"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "", "the table says it"
    lines = {line.split()[0]: line for line in shown.out.splitlines()}
    assert re.search(r" broken .*no_such_module_xyz", lines["absent"])
    assert re.search(r" broken .*ZeroDivisionError", lines["faulty"])
    assert " disabled" in lines["asleep"]
    assert "robustdd-absent" in lines["absent"]


def test_two_owners_of_a_name_are_shown_with_exit_code_2(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("one", strangers.method("m"))
    install("two", strangers.method("m"))
    assert main(["plugins", "--json"]) == 2
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert {"one", "two"} <= {item["name"] for item in found["plugins"]}
    assert "'one'" in found["conflict"]
    assert shown.err == f"error: {found['conflict']}\n"


def test_two_plugins_of_one_name_are_an_error_that_names_both(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install("twin", strangers.method("m"))
    info = tmp_path / "robustdd_other-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustdd-other\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[robustdd]\ntwin = stranger_twin\n")
    assert main(["plugins"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: two plugins are called 'twin'")
    assert "robustdd-twin" in shown
    assert "robustdd-other" in shown

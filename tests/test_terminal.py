"""What commands show on a terminal of 80 columns: names, keys and numbers are whole."""

from __future__ import annotations

import re
import sys

import pytest
from rich.cells import cell_len
from streams import Terminal

from robustdd_bench.cli.main import main
from robustdd_bench.plugins import collect, get_plugin_manager

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def shown(monkeypatch):
    def call(*words: str, columns: int = 80) -> list[str]:
        stream = Terminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("TERM", "xterm")
            patch.delenv("NO_COLOR", raising=False)
            patch.setattr(sys, "stdout", stream)
            assert main([*words]) == 0
        return ESCAPE.sub("", stream.getvalue()).splitlines()

    return call


def within(lines, columns=80):
    assert lines
    long = [line for line in lines if cell_len(line) > columns]
    assert not long
    assert "…" not in "".join(lines)


def test_the_board_keeps_names_and_numbers_whole(shown) -> None:
    lines = shown("board", "show", "digits-ipc10")
    within(lines)
    herding = next(line for line in lines if "herding" in line)
    assert len(re.findall(r"\d+\.\d ± \d+\.\d", herding)) == 5
    assert any(line.startswith("Left out at this width: images, seeds;") for line in lines)
    assert not any(
        "Left out" in line for line in shown("board", "show", "digits-ipc10", columns=120)
    )


def test_names_of_plugins_are_whole_and_remarks_are_told_once_below(shown) -> None:
    lines = shown("plugins")
    within(lines)
    for plugin in collect(get_plugin_manager()).plugins:
        assert any(re.match(rf"{plugin}( |$)", line) for line in lines), plugin
    below = lines[[line.startswith("Left out") for line in lines].index(True) :]
    assert any(line.startswith("tensorboard: ") for line in below)


def test_names_of_tracks_are_whole(shown) -> None:
    lines = shown("list", "tracks")
    within(lines)
    for name in collect(get_plugin_manager()).names("tracks"):
        assert any(line.startswith(f"{name}  ") for line in lines), name


def test_a_plan_of_a_sweep_shows_run_ids_that_can_be_copied(shown) -> None:
    lines = shown("sweep", "examples/sweeps/digits-seeds.toml", "--dry-run")
    within(lines)
    assert sum(bool(re.match(r"[0-9a-f]{12}  new  ", line)) for line in lines) == 42


def test_settings_are_grouped_and_presets_are_listed_with_what_they_cost(shown) -> None:
    lines = shown("show", "method", "mat")
    within(lines)
    titles = [line for line in lines if line.startswith("settings (--set key=value): ")]
    assert len(titles) == 2
    assert "adversarially trained" in titles[0]
    assert titles[1].endswith("Hyper-parameters of trajectory matching")
    presets = lines[[line.startswith("presets (--preset NAME)") for line in lines].index(True) :]
    text = "\n".join(presets)
    assert re.search(r"^default +digits +[\d.]+ (s|min) +digits-ipc1$", text, re.MULTILINE)
    assert re.search(r"^full-data +cifar10-small-ipc5 +\d+ h \d\d min$", text, re.MULTILINE)


def test_on_a_phone_every_row_is_a_list(shown) -> None:
    lines = shown("board", "show", "digits-ipc10", columns=40)
    within(lines, 40)
    assert lines.count("  seeds: 3") == 10
    assert any(re.fullmatch(r"  0\.10 \*: 64\.2 ± 1\.8", line) for line in lines)

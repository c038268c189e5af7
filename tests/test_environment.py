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
from robustdd_bench.records.environment import PeakMemory, environment


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

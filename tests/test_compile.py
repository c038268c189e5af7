"""The compiled kernels: where they come from, that they are made once, and what is said without."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustdd_bench.toolkit.fast import compile as compile_module
from robustdd_bench.toolkit.fast.compile import availability, kernels, trusted

CPU = torch.device("cpu")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("CXX", "ROBUSTDD_CACHE")}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not looked for kernels, with an empty cache; compiles quickly."""
    monkeypatch.setenv("ROBUSTDD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compile_module, "BASE", ("-O0", *compile_module.BASE[1:]))
    compile_module._found.cache_clear()
    yield tmp_path / "cache"
    compile_module._found.cache_clear()


@pytest.fixture
def compiler():
    """Skip where there is no C++ compiler."""
    if not availability(CPU).active:
        pytest.skip(availability(CPU).reason)


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


def test_they_are_for_the_cpu_and_for_gpus():
    found = availability(torch.device("mps"))
    assert not found.active
    assert found.reason == "there are no compiled kernels for mps"


def test_a_second_process_compiles_nothing(compiler, fresh, tmp_path):
    log = tmp_path / "calls"
    wrapper = script(tmp_path / "compiler", f'echo "$@" >> {log}', 'exec c++ "$@" -O0')
    code = "from robustdd_bench.toolkit.fast.compile import _found; print(_found().path)"
    environment = ENVIRONMENT | {"CXX": str(wrapper), "ROBUSTDD_CACHE": str(fresh)}
    places = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, text=True, stdout=-1, check=True
        ).stdout
        for _ in range(2)
    ]
    assert places[0] == places[1]
    assert Path(places[0].strip()).parent == fresh
    calls = log.read_text().splitlines()
    assert 1 <= len(calls) <= len(compile_module.TUNING)
    assert len(calls) == len(set(calls))


def test_without_a_compiler_the_reason_says_what_to_install(fresh, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert availability(CPU).reason == (
        "no C++ compiler is found; install g++ or clang++, or set CXX to one"
    )
    with pytest.raises(compile_module.CompilerError, match="no C\\+\\+ compiler"):
        kernels(CPU)


def test_a_compiler_that_is_named_and_missing_is_told(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler --fast")
    found = availability(CPU)
    assert not found.active
    assert "CXX='/no/such/compiler --fast' is not found; mend or unset CXX" in found.reason


def test_a_compiler_that_fails_is_named_with_its_first_error(fresh, monkeypatch, tmp_path):
    line = "kernels.cpp:7: error: this machine is tired"
    monkeypatch.setenv("CXX", str(script(tmp_path / "broken", f"echo '{line}' >&2", "exit 3")))
    found = availability(CPU)
    assert not found.active
    assert found.reason.startswith("the C++ compiler ")
    assert found.reason.endswith(f"fails: {line}")
    assert list(fresh.iterdir()) == []  # nothing half-made is left


def test_options_that_a_compiler_does_not_know_are_left_out(compiler, fresh, monkeypatch, tmp_path):
    picky = script(
        tmp_path / "picky",
        'for word in "$@"; do',
        '  case "$word" in -fopenmp|-march=native) echo "error: what is $word?" >&2; exit 1;; esac',
        "done",
        'exec c++ "$@"',
    )
    monkeypatch.setenv("CXX", str(picky))
    assert availability(CPU).active


def test_half_a_library_is_not_loaded_but_made_again(compiler, fresh):
    whole = compile_module._library()
    content = whole.read_bytes()
    whole.write_bytes(content[:1000])
    again = compile_module._library()
    assert again.read_bytes()[:1000] == content[:1000]
    assert len(again.read_bytes()) == len(content)


def test_a_library_that_cannot_be_loaded_is_told(tmp_path):
    other = tmp_path / "damaged"
    other.write_text("no library at all")
    with pytest.raises(compile_module.CompilerError, match=r"cannot be loaded.*delete .*damaged"):
        compile_module._load(other)


def test_a_cache_that_cannot_be_written_is_no_obstacle(compiler, fresh, tmp_path):
    fresh.write_text("a file where the folder should be")
    assert availability(CPU).active
    assert fresh not in compile_module._found().path.parents


def test_another_source_or_processor_is_another_library(compiler, fresh, monkeypatch, tmp_path):
    first = compile_module._library()
    monkeypatch.setattr(compile_module, "_processor", lambda: "another one")
    second = compile_module._library()
    source = tmp_path / "kernels.cpp"
    source.write_text(compile_module.SOURCE.read_text() + "// more\n")
    monkeypatch.setattr(compile_module, "SOURCE", source)
    assert len({first, second, compile_module._library()}) == 3


def test_the_width_of_vectors_changes_no_bit(compiler, fresh, monkeypatch):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the options are those of x86")
    monkeypatch.setattr(compile_module, "TUNING", (("-march=x86-64-v2",),))
    narrow = compile_module._load(compile_module._library())
    monkeypatch.undo()
    wide = kernels(CPU)
    source = torch.Generator().manual_seed(0)
    for side, dtype in itertools.product((4, 5, 8, 32), (torch.float32, torch.float64)):
        x, u, d = (torch.randn(2, 3, side, side, generator=source, dtype=dtype) for _ in range(3))
        weight, bias = torch.randn(2, 3, generator=source, dtype=dtype)
        results = []
        for library in (narrow, wide):
            y, d_x, to_x = (torch.empty_like(x) for _ in range(3))
            to_e = torch.empty_like(x)
            means, scales, *sums = (torch.empty(2, 3, dtype=dtype) for _ in range(5))
            norm = (weight, bias, means, scales)
            sizes = (6, 3, side, side)
            library("forward", (x, weight, bias, y, means, scales), *sizes, 1e-5, 1, 0)
            library("backward", (d, x, *norm, d_x, *sums[:2]), *sizes, 1, 0)
            library("second", (u, weight, bias, d, x, *norm, to_e, to_x, sums[2]), *sizes, 1, 0)
            results.append([y, means, scales, d_x, to_e, to_x, *sums])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_differs_from_the_eager_step_is_told_and_not_trusted():
    right, notes = [torch.ones(3), torch.arange(3)], []
    assert trusted(lambda: right, lambda: right, notes.append)
    assert trusted(lambda: [right[0] * (1 + 1e-6), right[1]], lambda: right, notes.append)
    noise = [torch.full((3,), 1e-8), torch.full((3,), -2e-8)]  # as of a bias before a norm
    assert trusted(lambda: [*right, noise[0]], lambda: [*right, noise[1]], notes.append)
    assert notes == []
    assert not trusted(lambda: [right[0] * 1.2, right[1]], lambda: right, notes.append)
    assert not trusted(lambda: [right[0] * torch.nan, right[1]], lambda: right, notes.append)
    assert [note.partition(":")[0] for note in notes] == ["compiled kernels are not used"] * 2
    assert notes[0].endswith("; steps run eagerly")
    assert "tensor 0 of the first step is off by 3.5e-01 of 1.7e+00" in notes[0]

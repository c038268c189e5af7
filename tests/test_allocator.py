"""Freed memory is kept where the C library is glibc and nobody has set it up otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from robustdd_bench.toolkit.fast import allocator
from robustdd_bench.toolkit.fast.allocator import VARIABLE, Keeping, give_back, keep_memory

GLIBC = allocator._glibc() is not None


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An environment that says nothing of allocators; what a test finds is forgotten."""
    for name in [VARIABLE, "GLIBC_TUNABLES", "LD_PRELOAD", *os.environ]:
        if name.startswith("MALLOC_") or name in (VARIABLE, "GLIBC_TUNABLES", "LD_PRELOAD"):
            monkeypatch.delenv(name, raising=False)
    keep_memory.cache_clear()
    yield
    keep_memory.cache_clear()


class Library:
    """A C library that notes what it is told and refuses some of it."""

    def __init__(self, refused: tuple[tuple[int, int], ...] = ()) -> None:
        self.told: list[tuple[int, int]] = []
        self.refused = refused
        self.trimmed = 0

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append((parameter, value))
        return int((parameter, value) not in self.refused)

    def malloc_trim(self, padding: int) -> int:
        self.trimmed += 1
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(allocator, "_library", lambda: made)
    monkeypatch.setattr(allocator, "_glibc", lambda: "glibc 2.99")
    return made


def test_the_thresholds_are_set_once(library: Library) -> None:
    found = keep_memory()
    assert found == Keeping(True, f"glibc 2.99 keeps freed memory; {VARIABLE}=off leaves it alone")
    assert keep_memory() is found
    assert library.told == [(-3, 2**30), (-1, -1)]
    give_back()
    assert library.trimmed == 1


def test_a_glibc_with_a_low_ceiling_maps_no_block_at_all(library: Library) -> None:
    library.refused = ((-3, 2**30),)
    assert keep_memory().active
    assert library.told == [(-3, 2**30), (-4, 0), (-1, -1)]


def test_a_library_that_refuses_is_said(library: Library) -> None:
    library.refused = ((-1, -1),)
    assert keep_memory() == Keeping(False, "glibc 2.99 does not take the setting")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (VARIABLE, "off", f"{VARIABLE}=off"),
        ("MALLOC_ARENA_MAX", "2", "MALLOC_ARENA_MAX is set, which is left as it is"),
        ("MALLOC_TRIM_THRESHOLD_", "1", "MALLOC_TRIM_THRESHOLD_ is set, which is left as it is"),
        (
            "GLIBC_TUNABLES",
            "glibc.malloc.trim_threshold=1",
            "GLIBC_TUNABLES sets glibc.malloc, which is left as it is",
        ),
        ("LD_PRELOAD", "/lib/libjemalloc.so.2", "LD_PRELOAD names another allocator"),
    ],
)
def test_what_the_user_has_set_is_left_alone(
    name: str, value: str, reason: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert keep_memory() == Keeping(False, reason)
    give_back()
    assert (library.told, library.trimmed) == ([], 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GLIBC_TUNABLES", "glibc.pthread.rseq=1"), ("LD_PRELOAD", "libfaketime.so"), (VARIABLE, "")],
)
def test_other_settings_do_not_matter(
    name: str, value: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert keep_memory().active


def test_an_unknown_mode_is_named_and_memory_is_kept(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "of")
    assert keep_memory() == Keeping(
        True, f"{VARIABLE}='of' is not known; glibc 2.99 keeps freed memory"
    )


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_other_c_libraries_are_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def confstr(name: str) -> str:
        raise error(name)

    monkeypatch.setattr(os, "confstr", confstr)
    assert keep_memory() == Keeping(False, "the C library is not glibc")
    give_back()


def test_a_process_without_ctypes_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: "glibc 2.99")
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert keep_memory() == Keeping(False, "glibc 2.99 does not take the setting")


PROGRAM = """
import json, resource
from robustdd_bench.toolkit.fast.allocator import give_back, keep_memory
kept = keep_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * 2**26
del block
start = resident()
before = faults()
for _ in range(5):
    block = b"x" * 2**26
    del block
after = faults() - before
give_back()
print(json.dumps({"active": kept.active, "faults": after, "freed": start - resident()}))
"""


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
@pytest.mark.parametrize(("mode", "kept"), [("auto", True), ("off", False)])
def test_freed_blocks_stay_until_they_are_given_back(mode: str, kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {VARIABLE: mode},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["active"] == kept
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    # Without it each block is cleared by the system again, one fault a page or, where pages are
    # huge, one for 2 MiB.
    assert (found["faults"] < 5 * 32) == kept, (found, pages)
    assert (found["freed"] > 2**25) == kept


COMPUTATION = """
import hashlib, sys, torch
from robustdd_bench.toolkit.fast.allocator import keep_memory
print(keep_memory().active)
torch.set_num_threads(1)
source = torch.Generator().manual_seed(0)
x = torch.randn(64, 3, 32, 32, generator=source)
w = torch.randn(32, 3, 3, 3, generator=source, requires_grad=True)
for _ in range(3):
    loss = torch.nn.functional.conv2d(x, w, padding=1).relu().square().mean()
    (gradient,) = torch.autograd.grad(loss, w)
    w = (w - 0.1 * gradient).detach().requires_grad_()
print(hashlib.sha256(w.detach().numpy().tobytes()).hexdigest())
"""


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_results_are_the_same_to_the_bit() -> None:
    found = {}
    for mode in ("auto", "off"):
        done = subprocess.run(
            [sys.executable, "-c", COMPUTATION],
            env=os.environ | {VARIABLE: mode},
            capture_output=True,
            text=True,
            check=True,
        )
        active, found[mode] = done.stdout.split()
        assert active == str(mode == "auto")
    assert found["auto"] == found["off"]

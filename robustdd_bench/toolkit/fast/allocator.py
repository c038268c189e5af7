"""Memory that stays: freed blocks are kept by the process and used again.

PyTorch asks the C library for a block for every tensor on the CPU. glibc takes blocks of more than
32 MiB from the system and gives them back when they are freed, and smaller ones at times, so that
the system clears the same pages again and again. Training a ConvNet-3 in batches of 256 of 3x32x32
spends two fifths of its processor time on that; steps of less than 32 MiB a tensor, as those of the
matching engine with 50 images, spend next to none (benchmarks/results/memory-*.json).

With the thresholds set here, freed blocks of less than 1 GiB stay in the heap until `give_back` is
called. The heap holds gaps, so that the peak is higher, by 1.1 to 1.2 times the resident set where
it pays. Results are the same bit for bit.

Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "ROBUSTDD_KEEP_MEMORY"
MODES = ("auto", "off")

# Names in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_LARGEST_KEPT = 2**30


@dataclass(frozen=True, slots=True)
class Keeping:
    """Whether freed memory is kept, and why or why not."""

    active: bool
    reason: str


@functools.cache
def keep_memory() -> Keeping:
    """Keep freed memory in this process from now on. Only the first call does something.

    The environment variable ROBUSTDD_KEEP_MEMORY may be "auto" or "off". The user's own settings
    of the allocator (MALLOC_*, GLIBC_TUNABLES, a preloaded allocator) are left as they are.
    """
    reason = _reason_against(os.environ)
    if reason is not None:
        return Keeping(False, reason)
    name = _glibc()
    if name is None:
        return Keeping(False, "the C library is not glibc")
    library = _library()
    if library is None or not _set_thresholds(library):
        return Keeping(False, f"{name} does not take the setting")
    mode = os.environ.get(VARIABLE, "auto")
    if mode not in MODES:
        return Keeping(True, f"{VARIABLE}={mode!r} is not known; {name} keeps freed memory")
    return Keeping(True, f"{name} keeps freed memory; {VARIABLE}=off leaves it alone")


def give_back() -> None:
    """Give the system what is free, if this process keeps it.

    What a measurement of memory finds is then not what was used before.
    """
    if keep_memory().active:
        library = _library()
        if library is not None:
            library.malloc_trim(0)


def _reason_against(variables: Mapping[str, str]) -> str | None:
    """Why the allocator of a process with this environment is left alone; None to set it."""
    if variables.get(VARIABLE) == "off":
        return f"{VARIABLE}=off"
    own = sorted(name for name in variables if name.startswith("MALLOC_"))
    if own:
        return f"{own[0]} is set, which is left as it is"
    if "glibc.malloc." in variables.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES sets glibc.malloc, which is left as it is"
    if "malloc" in variables.get("LD_PRELOAD", ""):
        return "LD_PRELOAD names another allocator"
    return None


def _glibc() -> str | None:
    """E.g. "glibc 2.36"; None with any other C library."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return None
    return name if name is not None and name.startswith("glibc") else None


def _library() -> Any:
    """The C library; None where it cannot be called."""
    try:
        import ctypes

        library = ctypes.CDLL(None)
        _ = library.mallopt, library.malloc_trim
    except (ImportError, OSError, TypeError, AttributeError):
        return None
    return library


def _set_thresholds(library: Any) -> bool:
    """Set them; whether all were taken."""
    # Older versions refuse a threshold above 32 MiB; then no block at all is taken for itself.
    kept = library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) or library.mallopt(_M_MMAP_MAX, 0)
    return bool(kept and library.mallopt(_M_TRIM_THRESHOLD, _NEVER))

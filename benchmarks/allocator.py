"""The surroundings of a measured process: one thread, and a known setting of the allocator."""

from __future__ import annotations

import os
from collections.abc import Mapping

ALLOCATORS: Mapping[str, Mapping[str, str]] = {
    "kept": {
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    },
    "system": {},
}
"""glibc's allocator: with memory that stays in the process, or as it is."""


def surroundings(allocator: str) -> dict[str, str]:
    """The environment of a child process; settings of the allocator that were there are gone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    return kept | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | dict(ALLOCATORS[allocator])

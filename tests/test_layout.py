"""Where code is."""

from __future__ import annotations

from pathlib import Path

import robustdd_bench

PACKAGE = Path(robustdd_bench.__file__).parent
LONGEST = 400


def test_no_module_of_the_harness_is_longer_than_its_readers_patience() -> None:
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}

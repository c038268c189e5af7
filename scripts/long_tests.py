"""Which tests `make test` leaves to `make test-long`, from the times of a whole run.

    python -m pytest -n 2 -m "not slow and not gpu and not cluster" --junitxml=REPORT.xml
    python scripts/long_tests.py REPORT.xml

Writes tests/data/long.txt, a test a line. A test is long if it took LONG seconds or more; of a
function with several parameters the quickest call stays in `make test`, unless it too takes MOST
seconds. Of a function whose other calls add up to more than BUDGET seconds, the slowest are left
out until they do not. Times of the later report hold.
Times are those of one machine on one day, so the list changes only when it is written again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from robustdd_bench.files import write_text

LIST = Path(__file__).resolve().parents[1] / "tests" / "data" / "long.txt"
LONG, MOST, BUDGET = 1.0, 2.0, 4.0


def seconds(reports: Iterable[Path]) -> dict[str, float]:
    """What each test took, by "file::test[parameters]"."""
    found = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            where = case.get("classname", "").replace(".", "/")
            found[f"{where}.py::{case.get('name')}"] = float(case.get("time", 0))
    return found


def long_tests(times: Mapping[str, float]) -> list[str]:
    """The tests that are left to `make test-long`, sorted.

    Args:
        times: seconds of each test.
    """
    functions = defaultdict(list)
    for name, took in times.items():
        functions[name.partition("[")[0]].append((took, name))
    found = []
    for calls in functions.values():
        calls.sort()
        kept = 0.0
        for number, (took, name) in enumerate(calls):
            slow = took >= (LONG if number > 0 else MOST)
            if slow or (number > 0 and kept + took > BUDGET):
                found.append(name)
            else:
                kept += took
    return sorted(found)


def main(arguments: list[str]) -> int:
    """Write the list; return the exit code."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    times = seconds(map(Path, arguments))
    found = long_tests(times)
    write_text(LIST, "".join(f"{name}\n" for name in found))
    left = sum(times.values()) - sum(times[name] for name in found)
    print(f"{LIST}: {len(found)} of {len(times)} tests; {left:.0f} s are left to `make test`")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

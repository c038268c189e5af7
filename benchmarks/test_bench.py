"""The benchmarks under pytest-benchmark: `make bench`. Committed figures come from measure.py."""

import pytest
from workloads import BENCHMARKS

CASES = [
    (name, variant)
    for name, (_, naive, ours, _) in BENCHMARKS.items()
    if not name.startswith("memory")  # a setting of the process, which is one here
    for variant in (naive, ours)
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_workload(benchmark, name, variant):
    """One variant of one benchmark."""
    benchmark.group = name
    work = BENCHMARKS[name][0](variant)
    rounds = 1 if name.startswith(("engine", "field")) else 5
    assert benchmark.pedantic(work, rounds=rounds, warmup_rounds=0) is not None

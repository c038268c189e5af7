"""The benchmarks under pytest-benchmark: `make bench`. Committed figures come from measure.py.

A round measures both variants once, each in a process of its own, in turns. The ratios are held
against the committed ones; a benchmark that fell is measured again before it fails.
"""

import pytest
from bench_results import Result
from guard import judge, line
from measure import RESULTS, _once
from pytest_benchmark.fixture import BenchmarkFixture
from workloads import BENCHMARKS

ROUNDS = 2


@pytest.mark.parametrize("name", BENCHMARKS)
def test_ratios_have_not_fallen_by_more_than_a_fifth(
    benchmark: BenchmarkFixture, name: str, verdict_lines: list[str]
) -> None:
    """Speed and memory of ours against the naive variant, beside the committed ratios."""
    _, naive, ours, _ = BENCHMARKS[name]
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    committed = Result.model_validate_json(text)
    taken: dict[str, list[dict[str, float]]] = {naive: [], ours: []}

    def both() -> None:
        order = (naive, ours) if len(taken[naive]) % 2 == 0 else (ours, naive)
        for variant in order:
            taken[variant].append(_once(name, variant))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=0)  # type: ignore[no-untyped-call]
    verdicts = judge(taken[naive], taken[ours], committed)
    for _ in range(ROUNDS):
        if any(verdict.fell for verdict in verdicts):
            both()
            verdicts = judge(taken[naive], taken[ours], committed)
    found = line(name, verdicts)
    verdict_lines.append(found)
    benchmark.extra_info["verdict"] = found
    benchmark.extra_info["measured"] = {v.what: v.measured for v in verdicts}
    benchmark.extra_info["committed"] = {v.what: v.committed for v in verdicts}
    assert not any(verdict.fell for verdict in verdicts), found

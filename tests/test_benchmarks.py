import json
import sys
from pathlib import Path

import pytest
import torch

from robustdd_bench.toolkit.fast.compile import availability

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(FOLDER))
    try:
        import bench_results
        import workloads

        yield bench_results, workloads
    finally:
        sys.path.remove(str(FOLDER))


def committed():
    return {path.stem: path for path in (FOLDER / "results").glob("*.json")}


def test_every_benchmark_has_a_committed_result_and_no_result_lacks_a_benchmark(modules):
    assert set(committed()) == set(modules[1].BENCHMARKS)


@pytest.mark.parametrize("path", committed().values(), ids=list(committed()))
def test_committed_results_say_what_was_measured_where_and_how(modules, path):
    results, workloads = modules
    result = results.Result.model_validate_json(path.read_text(encoding="utf-8"))
    _, naive, ours, text = workloads.BENCHMARKS[path.stem]
    assert (result.name, result.workload) == (path.stem, text)
    assert (result.naive.name, result.ours.name) == (naive, ours)
    assert result.command.startswith(f"python benchmarks/measure.py {path.stem}")
    assert {"python", "torch", "robustdd-bench"} <= set(result.versions)
    assert result.threads == 1


def test_a_result_with_a_ratio_of_its_own_is_refused(modules):
    path = next(iter(committed().values()))
    text = json.loads(path.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="speedup does not follow"):
        modules[0].Result.model_validate(text | {"speedup": text["speedup"] + 1})
    ours = text["ours"] | {"median_wall_s": 1e-9}
    with pytest.raises(ValueError, match="not the median"):
        modules[0].Result.model_validate(text | {"ours": ours})


def test_the_variants_of_a_workload_do_the_same_work(modules):
    _, workloads = modules
    naive, ours = (workloads.augmentation(5)(variant)() for variant in ("loop", "batch"))
    for a, b in zip(naive, ours, strict=True):
        torch.testing.assert_close(a, b)
    if availability(torch.device("cpu")).active:
        compiled, field = (
            workloads.engine(4, 4, 3)(variant)() for variant in ("compiled", "unrolled-groupnorm")
        )
        torch.testing.assert_close(compiled.images, field.images, rtol=1e-2, atol=1e-5)
        for name in ("experts-natural-w64", "student-w64"):
            assert workloads.BENCHMARKS[name][1:3] == ("loop", "compiled")
    naive, ours, other = (
        workloads.engine(4, 4, 3)(variant)() for variant in ("unrolled", "adjoint", "groupnorm")
    )
    for made in (ours, other):
        torch.testing.assert_close(made.images, naive.images, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(made.alpha, naive.alpha, rtol=1e-4, atol=1e-6)
    naive, ours = (workloads.training(4, 2)(variant)() for variant in ("returned", "kept"))
    assert torch.equal(naive, ours)
    naive, ours = (workloads.experts(4, 2, 256)(variant)() for variant in ("dataloader", "trainer"))
    assert len(naive) + 1 == len(ours)
    assert naive[0].shape == ours[0].shape


@pytest.fixture(scope="module")
def guard(modules):
    import guard

    return guard


def measurements(cpu_s, peak_bytes):
    return [
        {"wall_s": 9 * t, "cpu_s": t, "peak_bytes": b}
        for t, b in zip(cpu_s, peak_bytes, strict=True)
    ]


def made_up(modules, speed, memory):
    """A committed result with these ratios."""
    path = committed()["field-w64-b50-n30"]
    result = modules[0].Result.model_validate_json(path.read_text(encoding="utf-8"))
    return result.model_copy(update={"speedup_cpu": speed, "memory_ratio": memory})


@pytest.mark.parametrize(
    ("seconds", "fell"),
    [(1.0, False), (1.24, False), (1.26, True), (0.5, False)],
    ids=["as committed", "a little slower", "a fifth slower", "faster"],
)
def test_the_guard_reports_a_speed_ratio_that_fell_by_more_than_a_fifth(
    modules, guard, seconds, fell
):
    naive = measurements([2.0, 2.5], [100, 100])
    # On a machine that is ten times as slow, both variants are: the ratio alone counts.
    for slow in (1, 10):
        one = [m | {"cpu_s": slow * m["cpu_s"]} for m in naive]
        ours = measurements([slow * seconds, slow * seconds * 3], [10, 10])
        speed, memory = guard.judge(one, ours, made_up(modules, 2.0, 0.1))
        assert (speed.fell, memory.fell) == (fell, False)
        assert speed.measured == pytest.approx(2.0 / seconds)
        assert ("FELL" in guard.line("name", [speed, memory])) == fell


@pytest.mark.parametrize(("peak", "fell"), [(10, False), (12, False), (13, True), (5, False)])
def test_the_guard_reports_a_memory_ratio_that_rose_by_as_much(modules, guard, peak, fell):
    naive, ours = measurements([2.0], [100]), measurements([1.0], [peak])
    speed, memory = guard.judge(naive, ours, made_up(modules, 2.0, 0.1))
    assert (speed.fell, memory.fell) == (False, fell)


def test_the_guard_judges_speed_alone_where_memory_is_not_the_point(modules, guard):
    naive, ours = measurements([2.0], [100]), measurements([1.0], [900])
    (speed,) = guard.judge(naive, ours, made_up(modules, 2.0, None))
    assert speed.what == "speed"

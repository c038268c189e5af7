"""Measure every benchmark and write benchmarks/results/<name>.json.

    python benchmarks/measure.py [NAME]... [--n 5]

Each measurement is one process of one thread that prepares its workload, calls it once and prints
wall time, processor time and peak resident set above what it had before; the variants take turns,
so that a busy machine troubles both alike.

Freed memory is kept as in runs (`robustdd_bench.toolkit.fast.allocator`), on both sides, so that no
ratio owes anything to the allocator. The variant "returned", of benchmarks of that setting, opts
out. What is free is given back before the call, so that a peak is that of the call.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_results import Result, Variant, this_commit, this_machine

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "numpy", "robustdd-bench")


def child(name: str, variant: str) -> None:
    """Measure one call in this process and print JSON."""
    import torch
    from workloads import BENCHMARKS

    from robustdd_bench.records.environment import PeakMemory
    from robustdd_bench.toolkit.fast.allocator import VARIABLE, give_back, keep_memory

    if variant == "returned":
        os.environ[VARIABLE] = "off"
    kept = keep_memory()
    if kept.active == (variant == "returned"):
        raise SystemExit(f"{name}, {variant}: {kept.reason}")
    torch.set_num_threads(1)
    work = BENCHMARKS[name][0](variant)
    gc.collect()
    give_back()
    before = _resident()
    memory = PeakMemory("cpu")
    start, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = max(0, memory.read() - before)
    value = found if isinstance(found, float) else None
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "accuracy": value}))


def _resident() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell the resident set")


def _once(name: str, variant: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, variant],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def measure(name: str, n: int) -> Result:
    """Measure both variants of a benchmark `n` times each."""
    from workloads import BENCHMARKS

    _, naive, ours, text = BENCHMARKS[name]
    load = os.getloadavg()[0]
    taken: dict[str, list[dict[str, float]]] = {naive: [], ours: []}
    for k in range(n):
        for variant in (naive, ours) if k % 2 == 0 else (ours, naive):
            taken[variant].append(_once(name, variant))
            print(name, variant, taken[variant][-1], file=sys.stderr, flush=True)
    variants = {}
    for variant, values in taken.items():
        wall = [round(v["wall_s"], 6) for v in values]
        cpu = [round(v["cpu_s"], 6) for v in values]
        peak = [int(v["peak_bytes"]) for v in values]
        found = [v["accuracy"] for v in values]
        variants[variant] = Variant(
            name=variant,
            wall_s=wall,
            cpu_s=cpu,
            peak_bytes=peak,
            accuracy=None if None in found else found,
            median_wall_s=statistics.median(wall),
            median_cpu_s=statistics.median(cpu),
            median_peak_bytes=statistics.median(peak),
        )
    one, two = variants[naive], variants[ours]
    about_memory = "unrolled" in naive or naive == "returned"
    return Result(
        schema_version=1,
        name=name,
        workload=text,
        command=f"python benchmarks/measure.py {name} --n {n}",
        commit=this_commit(),
        threads=1,
        n=n,
        machine=this_machine(load),
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        naive=one,
        ours=two,
        speedup=one.median_wall_s / two.median_wall_s,
        speedup_cpu=one.median_cpu_s / two.median_cpu_s,
        memory_ratio=two.median_peak_bytes / one.median_peak_bytes if about_memory else None,
    )


def main() -> None:
    """Measure what is named, or everything."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    from workloads import BENCHMARKS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--n", type=int, default=5, help="processes per variant")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown or arguments.n < 5:
        parser.error(f"unknown benchmark {unknown[0]!r}" if unknown else "--n must be at least 5")
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.names or BENCHMARKS:
        result = measure(name, arguments.n)
        path = RESULTS / f"{name}.json"
        path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        memory = "" if result.memory_ratio is None else f", memory x {result.memory_ratio:.3f}"
        print(
            f"{name}: {result.speedup:.2f} times as fast, {result.speedup_cpu:.2f} in CPU{memory}"
        )


if __name__ == "__main__":
    main()

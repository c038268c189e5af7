"""The matching engine against its floor: write results/floor/<name>.json.

    python benchmarks/floor.py [NAME]... [--n 3] [--inductor]

The floor of a way of computing is its counted operations (convolutions and matrix products) at the
rate of a large matrix product, both in one process of one thread; the share of it says how much of
the time the arithmetic itself would take. Ways: the field's form (one graph of all steps, with
PyTorch's norm and pooling), the engine, the engine with compiled kernels, and with --inductor the
engine's two steps under `torch.compile`, whose compiling is timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from allocator import ALLOCATORS, surroundings
from bench_results import this_commit, this_machine
from compiled_workloads import with_torchs_pooling
from floor_results import Floor, Share
from torch import Tensor, nn

from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.operations import count_operations
from robustdd_bench.toolkit.trajectories.unroll import (
    Step,
    adjoint_gradients,
    matching_loss,
    unrolled_gradients,
)

RESULTS = Path(__file__).with_name("results") / "floor"
CASES = {"engine-w64-b50": (64, 50), "engine-w128-b10": (128, 10)}
STEPS = 10
MATRIX = 2048


def _time(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _inductor(network: FlatNetwork, x: Tensor, y: Tensor) -> tuple[Callable[[], object], float]:
    """One gradient and its products by `torch.compile`, and the seconds that compiling takes."""
    theta = network.theta()
    direction = torch.randn_like(theta)

    def gradient(theta: Tensor, x: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda t: F.cross_entropy(network(t, x), y))(theta)
        return found

    def products(theta: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.func.grad(
            lambda t, v: (gradient(t, v) * direction).sum(), argnums=(0, 1)
        )(theta, x)
        return found

    compiled = [torch.compile(f, fullgraph=True, dynamic=False) for f in (gradient, products)]

    def work() -> None:
        for function in compiled:
            function(theta, x)

    start = time.perf_counter()
    work()
    return work, time.perf_counter() - start


def child(name: str, n: int, inductor: bool) -> None:
    """Measure in this process and print JSON."""
    torch.set_num_threads(1)
    width, images = CASES[name]
    source = torch.Generator().manual_seed(0)
    with isolated_rng(0):
        body = convnet((3, 32, 32), 10, width=width)
    theirs = nn.Sequential(nn.Identity(), convnet((3, 32, 32), 10, width=width))
    with_torchs_pooling(theirs[1])
    theirs[1].load_state_dict(body.state_dict())
    ours = nn.Sequential(nn.Identity(), body)
    field, eager, fast = FlatNetwork(theirs), FlatNetwork(ours), FlatNetwork(ours, compile=True)
    field.body = theirs[1]
    x = torch.randn(images, 3, 32, 32, generator=source)
    y = torch.arange(images) % 10
    start = eager.theta()
    target = start + 0.01 * torch.randn(start.shape, generator=source)
    rest = x, y, torch.tensor(0.01), start, matching_loss(start, target), [Step()] * STEPS
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "field": (lambda: unrolled_gradients(field, *rest), STEPS),
        "engine": (lambda: adjoint_gradients(eager, *rest), STEPS),
        "compiled": (lambda: adjoint_gradients(fast, *rest), STEPS),
    }
    seconds = None
    if inductor:
        work, seconds = _inductor(field, x, y)
        ways["inductor"] = (work, 1)
    matrices = [torch.randn(MATRIX, MATRIX, generator=source) for _ in range(2)]
    operations = {}
    for way, (work, steps) in ways.items():
        if way != "inductor":
            operations[way] = count_operations(work) / steps
    taken: dict[str, list[float]] = {way: [] for way in ways}
    rate: list[float] = []
    for _ in range(n):
        rate.append(2 * MATRIX**3 / _time(lambda: matrices[0] @ matrices[1]))
        for way, (work, steps) in ways.items():
            taken[way].append(_time(work) / steps)
    print(
        json.dumps(
            {
                "rate": statistics.median(rate),
                "step_s": {way: statistics.median(values) for way, values in taken.items()},
                "operations": operations,
                "compile_s": seconds,
            }
        )
    )


def measure(name: str, n: int, inductor: bool) -> Floor:
    """Measure a case in a process of its own."""
    import subprocess

    load = os.getloadavg()[0]
    call = [sys.executable, __file__, "--child", name, str(n), str(int(inductor))]
    done = subprocess.run(
        call, stdout=subprocess.PIPE, text=True, check=True, env=surroundings("kept")
    )
    found = json.loads(done.stdout)
    width, images = CASES[name]
    ways = [
        Share(
            way=way,
            step_s=seconds,
            operations=found["operations"].get(way),
            times_as_fast=found["step_s"]["field"] / seconds,
            share=None
            if way not in found["operations"]
            else found["operations"][way] / found["rate"] / seconds,
        )
        for way, seconds in found["step_s"].items()
    ]
    return Floor(
        schema_version=1,
        name=name,
        workload=f"ConvNet-3 W={width}, B={images} of 3x32x32, {STEPS} student steps; a step",
        command=f"python benchmarks/floor.py {name} --n {n}{' --inductor' if inductor else ''}",
        commit=this_commit(),
        allocator=dict(ALLOCATORS["kept"]),
        n=n,
        machine=this_machine(load),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        rate=found["rate"],
        compile_s=found["compile_s"],
        ways=ways,
    )


def main() -> None:
    """Measure what is named, or everything."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--n", type=int, default=3, help="measurements of each way")
    parser.add_argument("--inductor", action="store_true", help="torch.compile too; a minute more")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(CASES))
    if unknown or arguments.n < 3:
        parser.error(f"unknown case {unknown[0]!r}" if unknown else "--n must be at least 3")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or CASES:
        result = measure(name, arguments.n, arguments.inductor)
        path = RESULTS / f"{name}.json"
        path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for way in result.ways:
            share = "" if way.share is None else f", {way.share:.0%} of the floor's rate"
            print(f"{name} {way.way}: {way.step_s:.3f} s a step, {way.times_as_fast:.2f}{share}")


if __name__ == "__main__":
    main()

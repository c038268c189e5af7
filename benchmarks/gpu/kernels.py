"""Where the time of a step goes, kernel by kernel: an expert, its adversary, the matching.

ConvNet-3 of width 128 on 3x32x32, each step done eagerly under torch's profiler after a warm-up.
Beside the kernels stand two floors: the counted operations over the measured rate of a large matrix
product, and the bytes of activations (each written once forward, read once and written once
backward, in float32) over the measured rate of a large copy. What a kernel takes above both can be
saved by fusing: the same steps follow with compiled kernels
(`robustdd_bench.toolkit.fast.triton_kernels`), and by how much their results differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench import Bench, Report, circumstances, parse, relative, write_report
from engine import Problem
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.toolkit.adversarial import Adversary, attack_batch
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.fast.precision import precision
from robustdd_bench.toolkit.operations import count_operations
from robustdd_bench.toolkit.trajectories.unroll import adjoint_gradients

SHOWN = 12


class Kernel(BaseModel):
    """A kernel of a step."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    share: float = Field(ge=0, le=1)
    """Of the step's time."""
    count: float = Field(gt=0)
    """How often a step launches it."""
    name: str


class Step(BaseModel):
    """One step, by kernel."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    ms: float = Field(gt=0)
    """Milliseconds in kernels."""
    kernels: float = Field(gt=0)
    """Launches."""
    longest: list[Kernel]
    floor_operations_ms: float = Field(gt=0)
    floor_bytes_ms: float = Field(gt=0)
    difference: float | None = None
    """Of a compiled step: relative, from torch's kernels."""


class Kernels(Report):
    """All steps, by name."""

    ceilings: dict[str, float]
    """Operations/s of large products, and bytes/s of a large copy."""
    steps: dict[str, Step]
    failed: dict[str, str]


def works(problem: Problem, network: FlatNetwork) -> dict[str, Callable[[], Tensor]]:
    """By name: one step of each kind on all images of the problem; what it computes."""
    theta = problem.start.detach().requires_grad_()
    pixels, labels = problem.images, problem.labels
    adversary = Adversary(threat=ThreatModel("Linf", 2 / 255), steps=1, step_size=1 / 255)
    noise = torch.Generator(device=pixels.device).manual_seed(0)

    def train() -> Tensor:
        return torch.autograd.grad(F.cross_entropy(network(theta, pixels), labels), theta)[0]

    def attack() -> Tensor:
        fixed = theta.detach()
        noise.manual_seed(0)
        return attack_batch(
            "pgd", lambda x: network(fixed, x), pixels.clamp(0, 1), labels, adversary, noise
        )

    def match() -> Tensor:
        return adjoint_gradients(network, *problem.arguments(), problem.steps[:1]).images

    return {"training": train, "adversary": attack, "matching": match}


def measured(work: Callable[[], object], device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of a step by kernel, the longest first."""
    for _ in range(min(3, repeats)):
        work()
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=kinds) as seen:
        for _ in range(repeats):
            work()
        if cuda:
            torch.cuda.synchronize()
    rows = [
        (
            event.self_device_time_total if cuda else event.self_cpu_time_total,
            event.count / repeats,
            event.key,
        )
        for event in seen.key_averages()
    ]
    rows.sort(reverse=True)
    total = sum(row[0] for row in rows)
    return {
        "ms": total / repeats / 1e3,
        "kernels": sum(row[1] for row in rows),
        "longest": [
            {"share": time / total, "count": count, "name": name[:110]}
            for time, count, name in rows[:SHOWN]
        ],
    }


def activation_bytes(problem: Problem) -> int:
    """Bytes of the outputs of all layers, for all images."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel() * 4))
        for module in problem.body.modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        problem.body(problem.images)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def main(arguments: list[str] | None = None) -> None:
    """Profile everything; one file and one table."""
    options = parse(__doc__, arguments)
    bench = Bench("kernels", options)
    tiny, device = bench.tiny, bench.device
    sizes = {"256 images": 2} if tiny else {"256 images": 256, "50 images": 50}
    about = circumstances("kernels", options, ["--tiny"] if tiny else [])
    found: dict[str, Any] = {"ceilings": bench.ceilings, "steps": {}, "failed": {}}
    for size, images in sizes.items():
        problem = Problem(images, 1, 4 if tiny else 128, device, torch.float32, "none")
        moved = 3 * activation_bytes(problem) / bench.ceilings["copy"] * 1e3
        for arithmetic in ("tf32",) if tiny else ("tf32", "float32"):
            with precision(arithmetic, device):
                plain = works(problem, problem.network)
                for name, work in plain.items():
                    title = f"{name}, {size}, {arithmetic}"
                    floors = {
                        "floor_operations_ms": 1e3
                        * count_operations(work)
                        / bench.ceilings[arithmetic],
                        "floor_bytes_ms": moved,
                    }
                    found["steps"][title] = measured(work, device, 1 if tiny else 20) | floors
                    expected = work()
                    body = nn.Sequential(nn.Identity(), problem.body)
                    try:
                        again = works(problem, FlatNetwork(body, compile=True))[name]
                        one = measured(again, device, 1 if tiny else 20)
                        one["difference"] = relative(again(), expected)
                        found["steps"][f"{title}, compiled"] = one | floors
                    except Exception as error:  # it must not cost the rest
                        found["failed"][title] = f"{type(error).__name__}: {error}"[:300]
                    show(found, title)
                    write_report(options.out / "kernels.json", Kernels(**about, **found))


def show(found: dict[str, Any], title: str) -> None:
    """Print a step, its longest kernels, and what fusing does to it."""
    one = found["steps"][title]
    print(
        f"{title}: {one['ms']:.3f} ms in {one['kernels']:.0f} kernels; floors "
        f"{one['floor_operations_ms']:.3f} ms, {one['floor_bytes_ms']:.3f} ms"
    )
    for row in one["longest"]:
        print(f"  {100 * row['share']:5.1f} % {row['count']:5.0f} x {row['name']}")
    fast = found["steps"].get(f"{title}, compiled")
    if fast is None:
        print(f"  compiled: {found['failed'].get(title)}")
        return
    print(
        f"  compiled: {fast['ms']:.3f} ms, {one['ms'] / fast['ms']:.2f} times as fast, "
        f"{fast['difference']:.1e} apart"
    )
    for row in fast["longest"][:6]:
        print(f"    {100 * row['share']:5.1f} % {row['count']:5.0f} x {row['name'][:90]}")


if __name__ == "__main__":
    main(sys.argv[1:])

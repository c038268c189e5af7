"""Where the time of a step goes, kernel by kernel: an expert, its adversary, the matching.

ConvNet-3 of width 128 on 3x32x32, each step done eagerly under torch's profiler after a warm-up.
Beside the kernels stand two floors: the counted operations over the measured rate of a large matrix
product, and the bytes of activations (each written once forward, read once and written once
backward, in float32) over the measured rate of a large copy. What a kernel takes above both can be
saved by fusing: the same steps follow with compiled kernels
(`robustdd_bench.toolkit.fast.triton_kernels`), and by how much their results differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench import Bench, count_operations, layout, parse, relative
from engine import Problem
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.toolkit.adversarial import Adversary, attack_batch
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.fast.precision import precision
from robustdd_bench.toolkit.trajectories.unroll import adjoint_gradients

SHOWN = 12
LAYOUTS = {"compiled": False, "channels last": True}


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
    found: dict[str, Any] = {
        "ceilings": bench.ceilings,
        "machine": options.device,
        "steps": {},
        "failed": {},
    }
    if device.type == "cuda":
        found["machine"] = torch.cuda.get_device_name()
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
                    for how, last in LAYOUTS.items():
                        candidate = FlatNetwork(
                            nn.Sequential(nn.Identity(), problem.body), compile=True
                        )
                        try:
                            with layout(last):
                                again = works(problem, candidate)[name]
                                one = measured(again, device, 1 if tiny else 20)
                                one["difference"] = relative(again(), expected)
                            found["steps"][f"{title}, {how}"] = one | floors
                        except Exception as error:  # a candidate must not cost the rest
                            text = f"{type(error).__name__}: {error}"[:300]
                            found["failed"][f"{title}, {how}"] = text
                    show(found, title)
                    options.out.mkdir(parents=True, exist_ok=True)
                    path = options.out / "kernels.json"
                    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(found: dict[str, Any], title: str) -> None:
    """Print a step, its longest kernels, and what fusing does to it."""
    one = found["steps"][title]
    print(
        f"{title}: {one['ms']:.3f} ms in {one['kernels']:.0f} kernels; floors "
        f"{one['floor_operations_ms']:.3f} ms, {one['floor_bytes_ms']:.3f} ms"
    )
    for row in one["longest"]:
        print(f"  {100 * row['share']:5.1f} % {row['count']:5.0f} x {row['name']}")
    for how in LAYOUTS:
        name = f"{title}, {how}"
        fast = found["steps"].get(name)
        if fast is None:
            print(f"  {how}: {found['failed'].get(name)}")
            continue
        print(
            f"  {how}: {fast['ms']:.3f} ms, {one['ms'] / fast['ms']:.2f} times as fast, "
            f"{fast['difference']:.1e} apart"
        )
        for row in fast["longest"][:6]:
            print(f"    {100 * row['share']:5.1f} % {row['count']:5.0f} x {row['name'][:90]}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What `robustdd doctor` checks of torch and its devices: threads, arithmetic, fast paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from robustdd_bench.text.terminal import one_line

if TYPE_CHECKING:
    import torch

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The outcome of one check."""

    status: Status
    what: str
    detail: str


def gib(size_bytes: float) -> str:
    """A size in GiB."""
    return f"{size_bytes / 2**30:.1f} GiB"


def check_torch() -> Iterator[Diagnosis]:
    """Devices, their memory, and the settings that decide speed and reproducibility."""
    try:
        import torch
    except Exception:  # check_packages has said so
        return
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    threads = torch.get_num_threads()
    if usable is not None and threads > usable:
        detail = f"{threads} threads on {usable} usable processors; set OMP_NUM_THREADS={usable}"
        yield Diagnosis("warn", "threads", detail)
    else:
        yield Diagnosis("ok", "threads", f"torch uses {threads}")
    yield check_arithmetic(torch.device("cpu"))
    yield from _check_cuda()
    try:
        matmul = torch.backends.cuda.matmul.allow_tf32
        tf32 = f"matmul {_on(matmul)}, convolutions {_on(torch.backends.cudnn.allow_tf32)}"
    except RuntimeError as error:  # the old and the new way of setting it were mixed
        tf32 = one_line(error, 120)
    yield Diagnosis("ok", "tf32", tf32)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield Diagnosis("ok", "deterministic algorithms", _on(deterministic))
    yield from check_fast_paths(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _check_cuda() -> Iterator[Diagnosis]:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            detail, reason = "not in this build of torch", "install a CUDA build of torch"
        else:
            detail = f"no device for CUDA {torch.version.cuda}"
            reason = "the driver is missing or too old, or CUDA_VISIBLE_DEVICES hides the device"
        if Path("/dev/nvidia0").exists():
            yield Diagnosis("warn", "cuda", f"{detail}, though this machine has a GPU; {reason}")
        else:
            yield Diagnosis("ok", "cuda", f"{detail}; runs use the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        try:
            free, total = torch.cuda.mem_get_info(device)
            name = torch.cuda.get_device_name(device)
        except RuntimeError as error:
            yield Diagnosis("fail", f"cuda:{index}", one_line(error, 200))
            continue
        memory = f"{name}, {gib(total)}, of which {gib(free)} free"
        yield Diagnosis("warn" if free < 2**30 else "ok", f"cuda:{index}", memory)
        yield check_arithmetic(device)
    if torch.backends.cudnn.is_available():
        yield Diagnosis("ok", "cudnn", str(torch.backends.cudnn.version()))
    else:
        yield Diagnosis("warn", "cudnn", "not available; convolutions will be slow")


def check_arithmetic(device: torch.device) -> Diagnosis:
    """Whether a convolution and its gradient on the device are those of float64 on the CPU."""
    import torch
    from torch.nn.functional import conv2d

    def gradient(where: torch.device, dtype: torch.dtype) -> torch.Tensor:
        x = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=dtype, device=where).view(2, 3, 8, 8)
        w = torch.linspace(1, -1, 4 * 3 * 3 * 3, dtype=dtype, device=where).view(4, 3, 3, 3)
        x.requires_grad_()
        (found,) = torch.autograd.grad(conv2d(x, w, padding=1).square().sum(), x)
        return found.cpu().double()

    what = f"arithmetic on {device}"
    try:
        exact = gradient(torch.device("cpu"), torch.float64)
        error = (gradient(device, torch.float32) - exact).abs().max() / exact.abs().max()
    except RuntimeError as failure:
        return Diagnosis("fail", what, one_line(failure, 200))
    # TF32 keeps ten bits, so a sound device may be off by about a thousandth.
    sound = bool(error < 5e-3)
    return Diagnosis("ok" if sound else "fail", what, f"relative error of a gradient {error:.1e}")


def check_fast_paths(device: torch.device) -> Iterator[Diagnosis]:
    """Which fast paths runs on a device take, and why not the others."""
    from robustdd_bench.evaluation.together import layout_for
    from robustdd_bench.toolkit.fast.allocator import keep_memory
    from robustdd_bench.toolkit.fast.capture import availability

    found = availability(device)
    problem = _try_capture(device) if found.active else None
    what = "captured steps"
    if problem is None:
        yield Diagnosis("ok", what, f"{_on(found.active)}: {found.reason}")
    else:
        yield Diagnosis("warn", what, f"off: {problem}; steps run one by one")
    yield check_kernels(device)
    stacked = layout_for(device) == "vmap"
    reason = "stacked on a GPU" if stacked else "on the CPU one by one is as fast (benchmarks)"
    yield Diagnosis("ok", "stacked students", f"{_on(stacked)}: {reason}")
    kept = keep_memory()
    yield Diagnosis("ok", "kept memory", f"{_on(kept.active)}: {kept.reason}")


def check_kernels(device: torch.device) -> Diagnosis:
    """Whether there are compiled kernels for a device, and that one computes what torch does."""
    import torch
    from torch import nn

    from robustdd_bench.toolkit.fast.blocks import NormBlock
    from robustdd_bench.toolkit.fast.compile import availability, trusted

    what, found = "compiled kernels", availability(device)
    if not found.active:
        usable = device.type == "cpu" or torch.cuda.is_available()
        return Diagnosis("warn" if usable else "ok", what, f"off: {found.reason}")
    block = NormBlock(nn.GroupNorm(4, 4).to(device), relu=True, pooled=True)
    x = torch.linspace(-1, 2, 2 * 4 * 8 * 8, device=device).view(2, 4, 8, 8).sin()
    x.requires_grad_()
    problems: list[str] = []
    trusted(
        lambda: torch.autograd.grad(block(x).square().sum(), x),
        lambda: torch.autograd.grad(block.formula(x).square().sum(), x),
        problems.append,
    )
    return (
        Diagnosis("warn", what, problems[0])
        if problems
        else Diagnosis("ok", what, f"on: {found.reason}")
    )


def _try_capture(device: torch.device) -> str | None:
    """What is wrong with capturing a convolution's training step on a device; None if nothing."""
    import torch
    from torch.nn.functional import conv2d

    from robustdd_bench.toolkit.fast.capture import Replayer

    problems: list[str] = []
    w = torch.linspace(1, -1, 4 * 3 * 3 * 3, device=device).view(4, 3, 3, 3)
    noise = torch.Generator(device=device).manual_seed(0)

    def step() -> None:
        leaf = w.detach().requires_grad_()
        x = torch.rand(8, 3, 8, 8, device=device, generator=noise)
        (gradient,) = torch.autograd.grad(conv2d(x, leaf, padding=1).square().mean(), leaf)
        w.sub_(gradient, alpha=0.1)

    try:
        Replayer(device, [w], [noise], problems.append).run("step", step)
    except RuntimeError as error:
        return one_line(error, 200)
    return problems[0] if problems else None

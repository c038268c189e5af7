"""`robustdd doctor`: is this machine and installation fit to run the benchmark?

One line a check: ok, warn or fail; what was looked at; what was found, with the remedy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from robustdd_bench.cli.arguments import data_root_option, out_option
from robustdd_bench.cli.output import json_option, print_json
from robustdd_bench.cli.session import Session, pass_session
from robustdd_bench.errors import RobustDDError
from robustdd_bench.plugins import PluginWarning, remarks
from robustdd_bench.terminal import one_line

if TYPE_CHECKING:
    import torch

Status = Literal["ok", "warn", "fail"]

# Distribution -> module, where they differ.
_MODULES = {"scikit-learn": "sklearn", "pillow": "PIL"}

# Dataset -> the files below the data root that torchvision looks for.
_LAYOUTS = {
    "cifar10": ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"),
    "cifar100": ("cifar-100-python/train", "cifar-100-python/test"),
    "mnist": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-images-idx3-ubyte"),
    "fashion-mnist": (
        "FashionMNIST/raw/train-images-idx3-ubyte",
        "FashionMNIST/raw/t10k-images-idx3-ubyte",
    ),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "folder": ("train", "test"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    status: Status
    what: str
    detail: str


def gib(size_bytes: float) -> str:
    """A size in GiB."""
    return f"{size_bytes / 2**30:.1f} GiB"


def check_python() -> Iterator[Check]:
    """Interpreter, platform, processors and memory."""
    version = platform.python_version()
    status: Status = "ok" if sys.version_info >= (3, 11) else "fail"
    yield Check(status, "python", f"{version} ({sys.executable})")
    yield Check("ok", "platform", platform.platform())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("ok", "cpu", f"{os.cpu_count()} processors, {usable} usable")
    yield check_memory()


def check_memory() -> Check:
    """Memory of the machine, and what is free of it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = total
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError, AttributeError):  # no Linux
        return Check("ok", "memory", "unknown on this platform")
    try:
        # A container's ceiling, which is lower than the machine's memory.
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        total, free = min(total, limit), min(free, max(limit - used, 0))
    except (OSError, ValueError):
        pass
    return Check(
        "warn" if free < 2**30 else "ok", "memory", f"{gib(total)}, of which {gib(free)} free"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_package(requirement: str) -> Check:
    """Whether a required distribution is there, new enough, and can be imported.

    Args:
        requirement: such as "torch>=2.6".
    """
    name, _, least = requirement.partition(">=")
    name, least = name.strip(), least.strip()
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check("fail", name, f"not installed; pip install '{requirement}'")
    if least and _numbers(version) < _numbers(least):
        return Check("fail", name, f"{version} is too old; pip install '{requirement}'")
    if name == "torchvision":
        return check_torchvision()
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as error:
        problem = one_line(f"{type(error).__name__}: {error}", 200)
        return Check("fail", name, f"{version} does not import ({problem}); reinstall it")
    return Check("ok", name, version)


def check_torchvision() -> Check:
    """Whether torchvision fits the torch that is installed: a mix of builds fails at import."""
    names = ("torch", "torchvision")
    found = {name: importlib.metadata.version(name) for name in names}
    remedy = "install both of one build (both for the CPU or both for one CUDA), from one index"
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        problem = one_line(f"{type(error).__name__}: {error}", 200)
        versions = " with ".join(f"{name} {version}" for name, version in found.items())
        return Check("fail", "torchvision", f"{versions} does not import ({problem}); {remedy}")
    builds = {
        name: str(getattr(sys.modules.get(name), "__version__", found[name])).partition("+")[2]
        for name in names
    }
    if all(builds.values()) and builds["torch"] != builds["torchvision"]:
        mix = f"is a {builds['torchvision']} build beside a {builds['torch']} build of torch"
        return Check("warn", "torchvision", f"{found['torchvision']} {mix}; {remedy}")
    return Check("ok", "torchvision", found["torchvision"])


def check_packages() -> Iterator[Check]:
    """Every distribution that this one requires."""
    try:
        required = importlib.metadata.requires("robustdd-bench") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("warn", "robustdd-bench", "not installed as a package; pip install -e .")
        return
    for requirement in required:
        if ";" not in requirement:  # what stands behind a marker is optional
            yield check_package(requirement)


def check_torch() -> Iterator[Check]:
    """Devices, their memory, and the settings that decide speed and reproducibility."""
    try:
        import torch
    except Exception:  # check_packages has said so
        return
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    threads = torch.get_num_threads()
    if usable is not None and threads > usable:
        detail = f"{threads} threads on {usable} usable processors; set OMP_NUM_THREADS={usable}"
        yield Check("warn", "threads", detail)
    else:
        yield Check("ok", "threads", f"torch uses {threads}")
    yield check_arithmetic(torch.device("cpu"))
    yield from _check_cuda()
    try:
        matmul = torch.backends.cuda.matmul.allow_tf32
        tf32 = f"matmul {_on(matmul)}, convolutions {_on(torch.backends.cudnn.allow_tf32)}"
    except RuntimeError as error:  # the old and the new way of setting it were mixed
        tf32 = one_line(error, 120)
    yield Check("ok", "tf32", tf32)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield Check("ok", "deterministic algorithms", _on(deterministic))
    yield from check_fast_paths(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _check_cuda() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            detail, reason = "not in this build of torch", "install a CUDA build of torch"
        else:
            detail = f"no device for CUDA {torch.version.cuda}"
            reason = "the driver is missing or too old, or CUDA_VISIBLE_DEVICES hides the device"
        if Path("/dev/nvidia0").exists():
            yield Check("warn", "cuda", f"{detail}, though this machine has a GPU; {reason}")
        else:
            yield Check("ok", "cuda", f"{detail}; runs use the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        try:
            free, total = torch.cuda.mem_get_info(device)
            name = torch.cuda.get_device_name(device)
        except RuntimeError as error:
            yield Check("fail", f"cuda:{index}", one_line(error, 200))
            continue
        memory = f"{name}, {gib(total)}, of which {gib(free)} free"
        yield Check("warn" if free < 2**30 else "ok", f"cuda:{index}", memory)
        yield check_arithmetic(device)
    if torch.backends.cudnn.is_available():
        yield Check("ok", "cudnn", str(torch.backends.cudnn.version()))
    else:
        yield Check("warn", "cudnn", "not available; convolutions will be slow")


def check_arithmetic(device: torch.device) -> Check:
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
        return Check("fail", what, one_line(failure, 200))
    # TF32 keeps ten bits, so a sound device may be off by about a thousandth.
    sound = bool(error < 5e-3)
    return Check("ok" if sound else "fail", what, f"relative error of a gradient {error:.1e}")


def check_fast_paths(device: torch.device) -> Iterator[Check]:
    """Which fast paths runs on a device take, and why not the others."""
    from robustdd_bench.evaluation.together import layout_for
    from robustdd_bench.toolkit.allocator import keep_memory
    from robustdd_bench.toolkit.capture import availability

    found = availability(device)
    problem = _try_capture(device) if found.active else None
    what = "captured steps"
    if problem is None:
        yield Check("ok", what, f"{_on(found.active)}: {found.reason}")
    else:
        yield Check("warn", what, f"off: {problem}; steps run one by one")
    stacked = layout_for(device) == "vmap"
    reason = "stacked on a GPU" if stacked else "on the CPU one by one is as fast (benchmarks)"
    yield Check("ok", "stacked students", f"{_on(stacked)}: {reason}")
    kept = keep_memory()
    yield Check("ok", "kept memory", f"{_on(kept.active)}: {kept.reason}")


def _try_capture(device: torch.device) -> str | None:
    """What is wrong with capturing a convolution's training step on a device; None if nothing."""
    import torch
    from torch.nn.functional import conv2d

    from robustdd_bench.toolkit.capture import Replayer

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


def check_plugins(session: Session) -> Iterator[Check]:
    """Plugins that are broken, and names that two of them own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # said below
        try:
            registry = session.registry
        except RobustDDError as error:
            yield Check("fail", "plugins", one_line(error))
            return
    infos = registry.plugins.values()
    broken = [info for info in infos if info.status == "broken"]
    for info in broken:
        yield Check("warn", f"plugin {info.name}", one_line(f"{info.distribution}: {info.problem}"))
    for name, text in remarks(session.manager).items():
        yield Check("ok", f"plugin {name}", one_line(text))
    names = ", ".join(info.name for info in infos if info.status == "loaded")
    yield Check("ok", "plugins", f"loaded: {names}")


def check_disk(out: Path) -> Check:
    """Free space where run folders go, and whether that place can be written."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return Check("fail", "disk", f"{place} is not a folder; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("fail", "disk", f"{place} cannot be written; choose another --out")
    free = shutil.disk_usage(place).free
    return Check("warn" if free < 2**30 else "ok", "disk", f"{gib(free)} free at {out}")


def check_data(root: Path) -> Iterator[Check]:
    """Which datasets are found below the data root, by their files."""
    if root.exists() and not root.is_dir():
        yield Check("fail", "data", f"{root} is not a folder; choose another --data-root")
        return
    found, missing = ["digits (embedded)"], []
    for name, files in _LAYOUTS.items():
        present = [(root / file).exists() for file in files]
        if all(present):
            found.append(name)
        elif any(present):
            lacking = next(file for file, there in zip(files, present, strict=True) if not there)
            yield Check("warn", f"data {name}", f"incomplete: no {lacking} in {root}")
        elif name != "folder":
            missing.append(name)
    yield Check("ok", "data", f"found: {', '.join(found)}")
    if missing:
        yield Check("ok", "data", f"not in {root}: {', '.join(missing)}")


def diagnose(session: Session, out: Path, data_root: Path) -> Iterator[Check]:
    """All checks, one after the other."""
    yield from check_python()
    yield from check_packages()
    yield from check_torch()
    yield from check_plugins(session)
    yield check_disk(out)
    yield from check_data(data_root)


def print_checks(checks: Iterable[Check]) -> list[Check]:
    """Print each check as soon as it is made; return them."""
    made = []
    for check in checks:
        print(f"{check.status:<4}  {check.what:<24}  {check.detail}", flush=True)
        made.append(check)
    return made


@click.command("doctor")
@out_option
@data_root_option
@json_option
@pass_session
@click.pass_context
def doctor(ctx: click.Context, session: Session, out: Path, data_root: Path, as_json: bool) -> None:
    """Check this machine and installation.

    Each line is ok, warn or fail, with what was looked at and what was found. The exit code is 1 if
    something fails.
    """
    checks: list[Check] | Iterator[Check] = diagnose(session, out, data_root)
    if as_json:
        checks = list(checks)
        report: dict[str, Any] = {"checks": [asdict(check) for check in checks]}
        report["ok"] = all(check.status != "fail" for check in checks)
        print_json(report)
    else:
        checks = print_checks(checks)
    if any(check.status == "fail" for check in checks):
        ctx.exit(1)

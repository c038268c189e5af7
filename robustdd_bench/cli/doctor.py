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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from robustdd_bench.cli.doctor_devices import Diagnosis, Status, check_torch, gib
from robustdd_bench.cli.shared.arguments import data_root_option, out_option
from robustdd_bench.cli.shared.output import json_option, print_hanging, print_json
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.plugins import PluginWarning, remarks
from robustdd_bench.protocol.imagenet.layouts import (
    SUBSET_LAYOUTS,
    TINY_LAYOUT,
    find_files,
    seems_present,
)
from robustdd_bench.text.terminal import one_line

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


def check_python() -> Iterator[Diagnosis]:
    """Interpreter, platform, processors and memory."""
    version = platform.python_version()
    status: Status = "ok" if sys.version_info >= (3, 11) else "fail"
    yield Diagnosis(status, "python", f"{version} ({sys.executable})")
    yield Diagnosis("ok", "platform", platform.platform())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Diagnosis("ok", "cpu", f"{os.cpu_count()} processors, {usable} usable")
    yield check_memory()


def check_memory() -> Diagnosis:
    """Memory of the machine, and what is free of it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = total
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError, AttributeError):  # no Linux
        return Diagnosis("ok", "memory", "unknown on this platform")
    try:
        # A container's ceiling, which is lower than the machine's memory.
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        total, free = min(total, limit), min(free, max(limit - used, 0))
    except (OSError, ValueError):
        pass
    return Diagnosis(
        "warn" if free < 2**30 else "ok", "memory", f"{gib(total)}, of which {gib(free)} free"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_package(requirement: str) -> Diagnosis:
    """Whether a required distribution is there, new enough, and can be imported.

    Args:
        requirement: such as "torch>=2.6".
    """
    name, _, least = requirement.partition(">=")
    name, least = name.strip(), least.strip()
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis("fail", name, f"not installed; pip install '{requirement}'")
    if least and _numbers(version) < _numbers(least):
        return Diagnosis("fail", name, f"{version} is too old; pip install '{requirement}'")
    if name == "torchvision":
        return check_torchvision()
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as error:
        problem = one_line(f"{type(error).__name__}: {error}", 200)
        return Diagnosis("fail", name, f"{version} does not import ({problem}); reinstall it")
    return Diagnosis("ok", name, version)


def check_torchvision() -> Diagnosis:
    """Whether torchvision fits the torch that is installed: a mix of builds fails at import."""
    names = ("torch", "torchvision")
    found = {name: importlib.metadata.version(name) for name in names}
    remedy = "install both of one build (both for the CPU or both for one CUDA), from one index"
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        problem = one_line(f"{type(error).__name__}: {error}", 200)
        versions = " with ".join(f"{name} {version}" for name, version in found.items())
        return Diagnosis("fail", "torchvision", f"{versions} does not import ({problem}); {remedy}")
    builds = {
        name: str(getattr(sys.modules.get(name), "__version__", found[name])).partition("+")[2]
        for name in names
    }
    if all(builds.values()) and builds["torch"] != builds["torchvision"]:
        mix = f"is a {builds['torchvision']} build beside a {builds['torch']} build of torch"
        return Diagnosis("warn", "torchvision", f"{found['torchvision']} {mix}; {remedy}")
    return Diagnosis("ok", "torchvision", found["torchvision"])


def check_packages() -> Iterator[Diagnosis]:
    """Every distribution that this one requires."""
    try:
        required = importlib.metadata.requires("robustdd-bench") or []
    except importlib.metadata.PackageNotFoundError:
        yield Diagnosis("warn", "robustdd-bench", "not installed as a package; pip install -e .")
        return
    for requirement in required:
        if ";" not in requirement:  # what stands behind a marker is optional
            yield check_package(requirement)


def check_plugins(session: Session) -> Iterator[Diagnosis]:
    """Plugins that are broken, and names that two of them own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # said below
        try:
            registry = session.registry
        except RobustDDError as error:
            yield Diagnosis("fail", "plugins", one_line(error))
            return
    infos = registry.plugins.values()
    broken = [info for info in infos if info.status == "broken"]
    for info in broken:
        yield Diagnosis(
            "warn", f"plugin {info.name}", one_line(f"{info.distribution}: {info.problem}")
        )
    for name, text in remarks(session.manager).items():
        yield Diagnosis("ok", f"plugin {name}", one_line(text))
    names = ", ".join(info.name for info in infos if info.status == "loaded")
    yield Diagnosis("ok", "plugins", f"loaded: {names}")


def check_disk(out: Path) -> Diagnosis:
    """Free space where run folders go, and whether that place can be written."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return Diagnosis("fail", "disk", f"{place} is not a folder; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        return Diagnosis("fail", "disk", f"{place} cannot be written; choose another --out")
    free = shutil.disk_usage(place).free
    return Diagnosis("warn" if free < 2**30 else "ok", "disk", f"{gib(free)} free at {out}")


def check_data(root: Path) -> Iterator[Diagnosis]:
    """Which datasets are found below the data root, by their files."""
    if root.exists() and not root.is_dir():
        yield Diagnosis("fail", "data", f"{root} is not a folder; choose another --data-root")
        return
    found, missing = ["digits (embedded)"], []
    for name, files in _LAYOUTS.items():
        present = [(root / file).exists() for file in files]
        if all(present):
            found.append(name)
        elif any(present) and not (name == "folder" and (root / "val").exists()):
            lacking = next(file for file, there in zip(files, present, strict=True) if not there)
            yield Diagnosis("warn", f"data {name}", f"incomplete: no {lacking} in {root}")
        elif name != "folder":
            missing.append(name)
    for name, layout in {"tiny-imagenet": TINY_LAYOUT, **SUBSET_LAYOUTS}.items():
        if not seems_present(layout, root):
            missing.append(name)
            continue
        try:
            find_files(layout, root)
        except UsageError as error:
            yield Diagnosis("warn", f"data {name}", one_line(error))
        else:
            found.append(name)
    yield Diagnosis("ok", "data", f"found: {', '.join(found)}")
    if missing:
        yield Diagnosis("ok", "data", f"not in {root}: {', '.join(missing)}")


def diagnose(session: Session, out: Path, data_root: Path) -> Iterator[Diagnosis]:
    """All checks, one after the other."""
    yield from check_python()
    yield from check_packages()
    yield from check_torch()
    yield from check_plugins(session)
    yield check_variables()
    yield check_disk(out)
    yield from check_data(data_root)


def check_variables() -> Diagnosis:
    """The variables that set defaults of options and change how much is computed at once."""
    found = [f"{key}={value}" for key, value in sorted(os.environ.items()) if _ours(key)]
    return Diagnosis("ok", "variables", one_line(" ".join(found), 1000) or "none is set")


def _ours(key: str) -> bool:
    return key.startswith("ROBUSTDD_") or key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def print_checks(checks: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Print each check as soon as it is made; return them."""
    made = []
    for check in checks:
        print_hanging(f"{check.status:<4}  {check.what:<24}  ", check.detail)
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
    checks: list[Diagnosis] | Iterator[Diagnosis] = diagnose(session, out, data_root)
    if as_json:
        checks = list(checks)
        report: dict[str, Any] = {"checks": [asdict(check) for check in checks]}
        report["ok"] = all(check.status != "fail" for check in checks)
        print_json(report)
    else:
        checks = print_checks(checks)
    if any(check.status == "fail" for check in checks):
        ctx.exit(1)

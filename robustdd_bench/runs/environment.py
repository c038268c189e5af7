"""What a record says about the machine and the code: facts that do not decide the result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

# What decides a result; published records, docs and tests do not make the code another one.
CODE = (":/robustdd_bench", ":/plugins", ":/baselines", ":/pyproject.toml")
PACKAGES = (
    "robustdd-bench",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "scipy",
    "safetensors",
)


def environment() -> dict[str, Any]:
    """Python, platform, processors, packages and accelerators."""
    import torch

    from robustdd_bench.toolkit.capture import availability

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "absent"
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count() or 1,
        "packages": packages,
        "cuda": torch.version.cuda or "" if cuda else "",
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "tf32": bool(cuda and torch.backends.cuda.matmul.allow_tf32),
        # Of convolutions it is on unless somebody turns it off.
        "tf32_convolutions": bool(cuda and torch.backends.cudnn.allow_tf32),
        "captured_steps": availability(torch.device("cuda" if cuda else "cpu")).active,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def source_commit() -> dict[str, Any] | None:
    """The git commit of the code, and whether it was changed since; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    root, commit = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    # An installed copy may lie inside somebody else's repository.
    if root is None or commit is None or not (Path(root) / "robustdd_bench").is_dir():
        return None
    changed = git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return {"sha": commit, "dirty": bool(changed)}


class PeakMemory:
    """Peak memory of a stage in bytes: the device's on CUDA, else the process's resident set."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # Linux: start the high-water mark again
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> int:
        """Bytes since the object was made (where the system can tell, else since the start)."""
        if self.device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated())
        try:
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

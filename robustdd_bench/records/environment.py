"""What a record says about the machine and the code: facts that do not decide the result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
import uuid
from pathlib import Path
from typing import Any

from robustdd_bench import __version__
from robustdd_bench.executors import Commit, Process
from robustdd_bench.registry.commit import source_commit
from robustdd_bench.toolkit.fast.allocator import give_back

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

    from robustdd_bench.toolkit.fast.capture import availability

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


@functools.cache
def process(device: str) -> Process:
    """Facts of this process, as they were when it was first asked.

    The code in memory is that of the start: what is committed later is not what runs.

    Args:
        device: "cpu" or "cuda", what it computes on.
    """
    commit = source_commit()
    return Process(
        harness=__version__,
        torch=importlib.metadata.version("torch"),
        commit=None if commit is None else Commit(**commit),
        host=host_id(),
        device=_accelerator() if device == "cuda" else _processor(),
    )


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "unknown"


def host_id() -> str:
    """A hash that tells this machine from others and does not name it."""
    facts = ["robustdd-bench host", platform.node()]
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            facts.append(Path(path).read_text(encoding="ascii", errors="replace").strip())
            break
    else:
        facts.append(hex(uuid.getnode()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


class PeakMemory:
    """Peak memory of a stage in bytes: the device's on CUDA, else the process's resident set."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            give_back()  # what stages before have freed is not this one's
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

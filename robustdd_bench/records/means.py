"""With what a run is carried out: device, threads, compiled kernels and torch.

It is part of a run's id, as it decides the last bits, and not of its identity.
"""

from __future__ import annotations

import os

from robustdd_bench.errors import UsageError, unknown_name

DEVICES = ("auto", "cpu", "cuda")
COMPILE = ("auto", "on", "off")
JOBS_VARIABLE = "ROBUSTDD_JOBS"
"""The default of `--jobs`."""
DATA_VARIABLE = "ROBUSTDD_DATA"
"""The default of `--data-root`, on each machine its own: a worker may have its data elsewhere."""
OUT_VARIABLE = "ROBUSTDD_OUT"
"""The default of `--out`, where it is the folder of runs."""
DEVICE_VARIABLE = "ROBUSTDD_DEVICE"
"""The default of `--device`."""


def torch_version() -> str:
    """Version of the torch that is installed."""
    import importlib.metadata  # the command line's help does without it

    return importlib.metadata.version("torch")


def check_device(device: str) -> int | None:
    """The number of a CUDA device that is chosen by number, "cuda:1"; else None.

    Raises:
        UsageError: there are no such devices.
    """
    kind, colon, number = device.partition(":")
    if kind == "cuda" and colon and number.isascii() and number.isdecimal():
        return int(number)
    if device not in DEVICES:
        raise unknown_name("device", device, (*DEVICES, "cuda:0"))
    return None


def resolve_device(device: str, *, elsewhere: bool = False) -> str:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device.

    One that is chosen by number becomes torch's current device: it is no part of a plan.

    Args:
        device: what was asked for.
        elsewhere: other machines compute, so "cuda" need not be here.

    Returns:
        "cpu" or "cuda".

    Raises:
        UsageError: CUDA is asked for and cannot be used.
    """
    import torch

    number = check_device(device)
    if elsewhere and device.startswith("cuda"):
        if number is not None:
            raise UsageError(
                f"--device {device} is a device of this machine, but others compute; say cuda"
            )
        return "cuda"
    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise UsageError("no CUDA device can be used here; see `robustdd doctor`, or --device cpu")
    if number is not None:
        count = torch.cuda.device_count()
        if number >= count:
            raise UsageError(f"--device {device}: there are {count} CUDA devices, counted from 0")
        torch.cuda.set_device(number)
    return "cuda" if available and device != "cpu" else "cpu"


def device_here(device: str) -> str:
    """The device that this process can use of a plan for "cpu" or "cuda".

    A plan for "cuda" may be one that other machines carry out.
    """
    import torch

    return device if device != "cuda" or torch.cuda.is_available() else "cpu"


def resolve_compile(choice: str, device: str, *, elsewhere: bool = False) -> bool:
    """Whether runs on a device compute with compiled kernels.

    They are compiled here, if no earlier process did: that takes a few seconds, once on a machine.

    Args:
        choice: "auto": where they can be had; "on": they must be; "off".
        device: "cpu" or "cuda".
        elsewhere: other machines compute; where there is no CUDA here they are taken to be there.

    Raises:
        UsageError: they are asked for and cannot be had.
    """
    import torch

    from robustdd_bench.toolkit.fast.compile import availability

    if choice not in COMPILE:
        raise unknown_name("compile", choice, COMPILE)
    if choice == "off":
        return False
    if elsewhere and device == "cuda" and not torch.cuda.is_available():
        return True
    found = availability(torch.device(device))
    if choice == "on" and not found.active:
        raise UsageError(f"--compile on: {found.reason}; or --compile off")
    return found.active


def check_threads(threads: int) -> None:
    """Refuse a number of CPU threads that cannot be.

    Raises:
        UsageError: it is negative, or far more than there are processors.
    """
    if threads < 0 or threads > 4 * (os.cpu_count() or 1):
        raise UsageError(f"--threads must lie in 0..{4 * (os.cpu_count() or 1)}, not {threads}")


def resolve_threads(threads: int) -> int:
    """How many CPU threads torch shall use."""
    import torch

    check_threads(threads)
    return threads or torch.get_num_threads()

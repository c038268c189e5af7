"""The command line in this process, without a start of Python, and one that is interrupted."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

from robustdd_bench.cli.main import main

# A test run in the background of a shell ignores SIGINT, and so would its children.
INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from robustdd_bench.cli.main import main; sys.exit(main())"
)


def robustdd(*args: str) -> subprocess.CompletedProcess[str]:
    """`robustdd ARGS`: exit code, stdout and stderr, as `subprocess.run` would give them."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(args)
    return subprocess.CompletedProcess(args, code, stdout.getvalue(), stderr.getvalue())


def press_ctrl_c() -> None:
    """What the user's Ctrl-C does. A plain `raise KeyboardInterrupt` is the fault of a plugin."""
    signal.raise_signal(signal.SIGINT)


def interrupted(out: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """`robustdd ARGS` in a process that gets Ctrl-C when there is a checkpoint under `out`."""
    command = [sys.executable, "-c", INTERRUPTIBLE, *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while process.poll() is None and not _checkpoint(out) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def _checkpoint(out: Path) -> bool:
    try:
        return any(out.rglob("matching.safetensors"))
    except FileNotFoundError:  # a run that ended has just deleted its work folder
        return False

"""The command line in this process: what a call returns and prints, without a start of Python."""

from __future__ import annotations

import contextlib
import io
import subprocess

from robustdd_bench.cli.main import main


def robustdd(*args: str) -> subprocess.CompletedProcess[str]:
    """`robustdd ARGS`: exit code, stdout and stderr, as `subprocess.run` would give them."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(args)
    return subprocess.CompletedProcess(args, code, stdout.getvalue(), stderr.getvalue())

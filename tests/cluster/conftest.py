"""What every engine is compared with."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import INTERRUPTIBLE
from engines import arguments, sweep_file


@pytest.fixture(scope="session")
def local_sweep(tmp_path_factory):
    """The output folder of the sweep of `engines`, one cell after the other on this machine."""
    folder = tmp_path_factory.mktemp("local")
    words = [*arguments(sweep_file(folder), folder / "out"), "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTIBLE, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"

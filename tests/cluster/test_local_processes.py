"""The sweep of all engines in processes of this machine."""

from __future__ import annotations

import pytest
from commands import robustdd
from engines import arguments, assert_same_runs, sweep_file

pytestmark = pytest.mark.cluster


def test_processes_make_the_runs_of_one(local_sweep, tmp_path) -> None:
    done = robustdd(*arguments(sweep_file(tmp_path), tmp_path / "out"), "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path / "out", local_sweep)

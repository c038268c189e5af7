"""Commands that take long say so before they load torch; what is wrong without it is said alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LOADED = "torch is imported"
# In place of torch: tells that it is imported, and ends the process.
WATCH = f"import os, sys\nprint({LOADED!r}, file=sys.stderr, flush=True)\nos._exit(3)\n"
SWEEP = 'methods = ["mat", "random"]\ntracks = ["digits-ipc10"]\nseeds = [0, 1]\n'

Call = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Calls `robustdd`: exit code, stdout and the lines of stderr, up to the import of torch."""
    folder = tmp_path / "watch" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(WATCH)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text("{}")
    (tmp_path / "set.safetensors").write_bytes(b"")
    names = {k: v for k, v in os.environ.items() if not k.startswith(("ROBUSTDD", "_ROBUSTDD"))}

    def _call(*words: str) -> tuple[int, str, list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "robustdd_bench", *words],
            cwd=tmp_path,
            env=names | {"PYTHONPATH": str(folder.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr.splitlines()

    return _call


SAID = {
    "run --method mat": "robustdd run: mat on digits-ipc10, seed 0; loading torch",
    "run --method dm --track digits-ipc1 --seed 3 --json": (
        "robustdd run: dm on digits-ipc1, seed 3; loading torch"
    ),
    "run --method mat --dry-run": "robustdd run: mat on digits-ipc10, seed 0; loading torch",
    "evaluate set.safetensors --seed 1": (
        "robustdd evaluate: set.safetensors on digits-ipc10, seed 1; loading torch"
    ),
    "evaluate run": "robustdd evaluate: run; loading torch",
    "evaluate run --track digits-ipc1": "robustdd evaluate: run; loading torch",
    "sweep sweep.toml": "robustdd sweep: sweep.toml; loading torch",
    "verify run": "robustdd verify: run; loading torch",
    "verify run/record.json --track digits-ipc1": (
        "robustdd verify: run/record.json; loading torch"
    ),
}


@pytest.mark.parametrize("words", SAID)
def test_the_first_line_comes_before_torch_is_imported(words: str, call: Call) -> None:
    code, stdout, lines = call(*words.split())
    assert lines == [SAID[words], LOADED]
    assert (code, stdout) == (3, "")


@pytest.mark.parametrize("words", ["run --method mat", "sweep sweep.toml"])
def test_a_plan_as_json_says_nothing_on_stderr(words: str, call: Call) -> None:
    _, stdout, lines = call(*words.split(), "--dry-run", "--json")
    assert (stdout, lines) == ("", [LOADED])


WRONG = {
    "run --method nat": "unknown method 'nat'; did you mean 'mat'?",
    "run --method mat --track digits-ipc11": "unknown track 'digits-ipc11'; did you mean",
    "run --method mat --track none.toml": "no track file none.toml",
    "run --method mat --trak x": "unknown option --trak; did you mean --track?",
    "run --method mat --set x": "",
    "run --method mat --seed -1": "--seed must not be negative, not -1",
    "run --method mat --device gpu": "unknown device 'gpu'",
    "run --method mat --executor locl": "unknown executor 'locl'; did you mean 'local'?",
    "run --method mat --threads -1": "--threads must lie in 0..",
    "sweep sweep.toml --threads 9999": "--threads must lie in 0..",
    "verify run --threads -1": "--threads must lie in 0..",
    "evaluate none": "no file none",
    "evaluate watch": "no file watch/record.json",
    "evaluate set.safetensors --track digits": "unknown track 'digits'; did you mean",
    "evaluate set.safetensors --seed -1": "--seed must not be negative, not -1",
    "evaluate run --seed 1": "--seed: the seed is the run's; leave the option out",
    "evaluate run --track nowhere": "unknown track 'nowhere'",
    "evaluate run --executor dask": "unknown executor 'dask'",
    "sweep none.toml": "no file none.toml",
    "sweep run/record.json": "",
    "verify none": "no file none",
    "verify watch": "no file watch/record.json",
    "verify run --track nowhere": "unknown track 'nowhere'",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_call_that_is_wrong_without_torch_is_one_line(words: str, call: Call) -> None:
    code, stdout, lines = call(*words.split())
    assert (code, stdout, len(lines)) == (2, "", 1), lines
    assert lines[0].startswith(f"error: {WRONG[words]}")


def test_a_sweep_of_an_unknown_method_is_told_with_all_else_that_is_wrong(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("random", "randm"))
    assert call("sweep", "sweep.toml")[2] == [LOADED]


def test_a_closed_stderr_leaves_stdout_alone(tmp_path: Path) -> None:
    words = "run --method mat --track nowhere --out runs"
    command = f"{sys.executable} -m robustdd_bench {words} 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")

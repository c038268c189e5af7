import os
from pathlib import Path

# Tests use networks so small that threads cost more than they give: ten times on a busy machine.
# The variable is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# They run one cell after the other, in the process of the test; test_processes.py does not.
os.environ.setdefault("ROBUSTDD_JOBS", "1")

import signal

import pytest
import torch
from simulated_device import simulated_gpu

from robustdd_bench.drawing import figures

torch.set_num_threads(1)
# Whether a file outlives a power failure is not tested, and waiting for the disk takes long.
os.fsync = lambda descriptor: None
# A test run in the background of a shell ignores Ctrl-C, which tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def gpu():
    """A simulated GPU for the length of a test; what happened on it."""
    with simulated_gpu() as device:
        yield device


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was():
    """Fail the test that leaves the process changed, not whichever comes after it."""
    folder = os.getcwd()
    variables = {name: value for name, value in os.environ.items() if "PYTEST_" not in name}
    yield
    left = os.getcwd()
    os.chdir(folder)
    changed = {name: os.environ.get(name) for name in variables}
    # Libraries add variables of their own when they are imported; ours are added by tests.
    added = {name for name in os.environ if name.startswith("ROBUSTDD_")} - set(variables)
    os.environ.update(variables)
    for name in added:
        del os.environ[name]
    assert (left, changed, added) == (folder, variables, set()), "use monkeypatch: this stays"


def _once_each(draw):
    """Draw the curve of a run once: it takes a fifth of a small run, and many runs are the same."""
    drawn = {}

    def robustness_png(aggregates, track, title):
        key = aggregates.model_dump_json(), track.model_dump_json(), title
        if key not in drawn:
            drawn[key] = draw(aggregates, track, title)
        return drawn[key]

    robustness_png.draw = draw
    return robustness_png


figures.robustness_png = _once_each(figures.robustness_png)

LONG = (
    "test_pipeline",
    "test_page_browser",
    "test_on_device",
    "test_attacks_properties",
    "test_conformance",
    "test_verify",
    "test_strangers_code",
    "test_receipts",
    "test_cli_run",
    "test_fresh",
    "test_compiled_runs",
    "test_submissions",
    "test_reuse",
    "test_matching",
    "test_dc",
    "test_publish",
    "test_ranking",
    "test_reach",
    "test_identity",
    "test_cli_sweep",
    "test_gpu_benchmarks",
)
"""Files that take longest: they are begun first, so that no worker is left alone with one."""


LONG_TESTS = frozenset(
    (Path(__file__).parent / "data" / "long.txt").read_text(encoding="utf-8").splitlines()
)
"""Tests that `make test` leaves to `make test-long`; scripts/long_tests.py writes the list."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the marks
def pytest_collection_modifyitems(items) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
    for item in items:
        if f"tests/{item.path.name}::{item.name}" in LONG_TESTS:
            item.add_marker(pytest.mark.long)

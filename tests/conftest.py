import os

# Tests use networks so small that threads cost more than they give: ten times on a busy machine.
# The variable is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# They run one cell after the other, in the process of the test; test_processes.py does not.
os.environ.setdefault("ROBUSTDD_JOBS", "1")

import signal

import pytest
import torch
from simulated_device import simulated_gpu

torch.set_num_threads(1)
# A test run in the background of a shell ignores Ctrl-C, which tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def gpu():
    """A simulated GPU for the length of a test; what happened on it."""
    with simulated_gpu() as device:
        yield device

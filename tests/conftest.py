import pytest
import torch
from simulated_device import simulated_gpu

# Tests use networks so small that threads cost more than they give: ten times on a busy machine.
torch.set_num_threads(1)


@pytest.fixture
def gpu():
    """A simulated GPU for the length of a test; what happened on it."""
    with simulated_gpu() as device:
        yield device

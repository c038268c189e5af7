import os

# Tests use networks so small that threads cost more than they give: ten times on a busy machine.
# The variable is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

import torch

# Tests use networks so small that threads cost more than they give: ten times on a busy machine.
torch.set_num_threads(1)

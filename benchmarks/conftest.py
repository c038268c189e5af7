"""Benchmarks run on one thread and keep freed memory, as runs do."""

import torch

from robustdd_bench.toolkit.allocator import keep_memory

torch.set_num_threads(1)
keep_memory()

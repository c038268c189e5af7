"""Tensors and a network on which published code was run beside ours; the figures are in data/."""

import torch
from torch import nn

from robustdd_bench.seeds import isolated_rng


def tensors():
    """Images (6,1,8,8) float64 and labels (6,) of four classes."""
    source = torch.Generator().manual_seed(11)
    return torch.randn(6, 1, 8, 8, generator=source, dtype=torch.float64), torch.arange(6) % 4


def network():
    """Two convolutions with batch norm, a linear layer; float64."""
    with isolated_rng(3):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Softplus(),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(144, 4),
        ).double()

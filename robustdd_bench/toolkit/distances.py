"""Distances that matching methods minimise.

`gradient_distance` is that of DC (Zhao, Mopuri and Bilen 2021, "Dataset Condensation with Gradient
Matching", eq. 9 and the released recipe); `mean_distance` that of DM (Zhao and Bilen 2023, "Dataset
Condensation with Distribution Matching", eq. 4).

Shapes: K classes, F features, R rows of a weight (output channels or units).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COSINE_EPSILON = 1e-6


def gradient_distance(
    target: Sequence[Tensor], gradients: Sequence[Tensor], *, epsilon: float = COSINE_EPSILON
) -> Tensor:
    """Sum over layers and rows of 1 - <a,b> / (|a||b| + epsilon).

    A row is one output channel of a convolution, flattened, or one output unit of a linear layer.
    Tensors of one axis (biases, norms' affine parameters) contribute nothing, so they need not be
    given.

    Args:
        target: gradients of the real batch, one tensor per parameter, each (R, ...).
        gradients: gradients of the synthetic batch, in the same order and of the same shapes.
        epsilon: added to the product of the norms.

    Returns:
        A scalar; 0 only for gradients that point the same way row by row (up to epsilon).
    """
    total = target[0].new_zeros(())
    for a, b in zip(target, gradients, strict=True):
        if a.ndim < 2:
            continue
        a_RX, b_RX = a.flatten(1), b.flatten(1)
        norms = torch.linalg.vector_norm(a_RX, dim=1) * torch.linalg.vector_norm(b_RX, dim=1)
        total = total + (1 - (a_RX * b_RX).sum(1) / (norms + epsilon)).sum()
    return total


def class_means(features_BF: Tensor, sizes: Sequence[int]) -> Tensor:
    """Means of consecutive groups of rows.

    Args:
        features_BF: the classes one after the other, B = sum(sizes).
        sizes: rows of each class.

    Returns:
        (K,F). No atomics are used, so a device gives the same bits every time.
    """
    if len(set(sizes)) == 1:
        return features_BF.view(len(sizes), sizes[0], -1).mean(1)
    return torch.stack([part.mean(0) for part in torch.split(features_BF, list(sizes))])


def mean_distance(target_KF: Tensor, means_KF: Tensor) -> Tensor:
    """Sum over classes of the squared Euclidean distance between class means; a scalar."""
    return (target_KF - means_KF).square().sum()

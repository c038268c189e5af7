"""Hashes of tensors: what a data split, a distilled set and a teacher are known by."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Digest(Protocol):
    """What `hashlib.sha256()` gives."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""


def hash_tensor(digest: Digest, tensor: Tensor, name: str = "") -> None:
    """Take a tensor into a hash: its name, type, shape and bytes, wherever it lies.

    Args:
        digest: of hashlib.
        tensor: of any type.
        name: what it is called; "" where its place tells.
    """
    data = tensor.detach().cpu().contiguous()
    digest.update(f"{name}{data.dtype}{tuple(data.shape)}".encode())
    digest.update(data.numpy().tobytes())

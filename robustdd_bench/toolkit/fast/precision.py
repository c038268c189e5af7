"""The arithmetic in which float32 networks compute.

- "default": whatever torch is set to. Out of the box that is TF32 in the convolutions of a GPU and
  float32 in matrix products.
- "float32": float32 throughout.
- "tf32": TF32 in convolutions and matrix products of a GPU (10 bits of mantissa); on the CPU it is
  float32.
- "bfloat16": convolutions and matrix products take bfloat16 inputs (7 bits of mantissa) by
  autocast, forward and backward; weights, their update, norms and losses stay in float32. Pixels
  near 1 are then rounded to multiples of 1/256: half of that is as large as half an eps of 1/255.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

PRECISIONS = ("default", "float32", "tf32", "bfloat16")


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in one of `PRECISIONS` within; torch's settings are as before afterwards.

    Casts are not cached: a cached one is made once, and a captured step would replay it.

    Raises:
        ValueError: there is none of that name.
    """
    check_precision(name)
    if name == "default":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    half = name == "bfloat16"
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = name != "float32"
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def settings(device: torch.device) -> tuple[bool, bool, torch.dtype | None]:
    """What decides the arithmetic on a device: TF32 in products, TF32 in convolutions, autocast.

    A captured step computes for ever as it was captured, so these are part of its key.
    """
    cast = torch.is_autocast_enabled(device.type)
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_autocast_dtype(device.type) if cast else None,
    )


def check_precision(name: str, what: str = "precision") -> None:
    """Raise ValueError, which names the setting, unless it is one of `PRECISIONS`."""
    if name not in PRECISIONS:
        raise ValueError(f"{what} must be one of {', '.join(PRECISIONS)}, not {name!r}")

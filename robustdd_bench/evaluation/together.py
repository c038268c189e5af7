"""Several students of one architecture as one model, so that one attack moves them all at once.

A batch holds rows (student, example). It is answered in one of two layouts, which agree up to
rounding of the networks' own sums:

- "loop": the rows of each student go through it, one student after the other;
- "vmap": the weights are stacked, and the rows are padded to a rectangle (R, width) that one
  batched pass answers (`torch.func.functional_call` under `torch.vmap`).

Shapes: R students, B rows, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import RoutedModel

Layout = Literal["loop", "vmap"]


def layout_for(device: torch.device, compiled: bool = False) -> Layout:
    """Which layout is the faster one on a device; compiled kernels do not compute a stack.

    The rule is fixed rather than timed anew in each run, so that a run repeats bit for bit. On the
    CPU the loop wins wherever a batch keeps a core busy (benchmarks/results/attacks.json); on a GPU
    small kernels wait for their launch, of which the stacked pass needs an R-th.
    """
    return "vmap" if device.type == "cuda" and not compiled else "loop"


class Students:
    """R students that can be attacked together.

    Args:
        models: the students, in eval mode.
        layout: how a batch is answered; "vmap" needs students of one architecture.
    """

    def __init__(self, models: Sequence[nn.Module], layout: Layout = "loop") -> None:
        self.models = tuple(models)
        self.layout = layout
        self.forwards = [0] * len(self.models)
        """Images passed through each of them."""
        self._stack: Any = None
        if layout == "vmap":
            self._stack = torch.func.stack_module_state(list(models))

    def rows(self, owner: Tensor) -> RoutedModel:
        """The model whose row b is answered by student `owner[b]`; owner (B,) int64."""
        return _Rows(self, owner)

    def stacked(self, grid: Tensor) -> Tensor:
        """Logits (R,width,K) of pixels (R,width,C,H,W) in one pass."""
        base = self.models[0]

        def answer(weights: Any, buffers: Any, x: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(base, (weights, buffers), (x,))
            return logits

        weights, buffers = self._stack
        logits: Tensor = torch.vmap(answer)(weights, buffers, grid)
        return logits


class _Rows(RoutedModel):
    """Rows of students; one wait for the device when it is made, none when it is called."""

    def __init__(self, students: Students, owner: Tensor) -> None:
        self._students, self._owner = students, owner
        self._order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=len(students.models))
        self._counts: list[int] = counts.tolist()
        self._width = max(self._counts)
        place = torch.empty_like(owner)
        place[self._order] = torch.arange(len(owner), device=owner.device)
        self._place = place
        self._slots = owner * self._width + place - (counts.cumsum(0) - counts)[owner]

    def select(self, keep: Tensor) -> RoutedModel:
        """The model for the rows at `keep` (indices or a mask)."""
        return _Rows(self._students, self._owner[keep])

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B,K) of pixels (B,C,H,W).

        Raises:
            ValueError: the batch does not hold the rows that the model was made for.
        """
        if len(images) != len(self._owner):
            raise ValueError(
                f"{len(images)} images for {len(self._owner)} rows: an attack with routed = True "
                "takes `rows(model, keep)` for the rows it keeps"
            )
        students = self._students
        for r, count in enumerate(self._counts):
            students.forwards[r] += count
        if students.layout == "vmap" and len(images):
            shape = (len(students.models) * self._width, *images.shape[1:])
            grid = images.new_zeros(shape).index_copy(0, self._slots, images)
            grid = grid.view(len(students.models), self._width, *images.shape[1:])
            return students.stacked(grid).flatten(0, 1)[self._slots]
        pieces = images[self._order].split(self._counts)
        found = [m(piece) for m, piece in zip(students.models, pieces, strict=True) if len(piece)]
        return torch.cat(found or [students.models[0](images)])[self._place]

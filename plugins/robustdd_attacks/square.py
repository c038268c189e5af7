"""Square: random search with squares, which sees nothing but the logits.

Andriushchenko, Croce, Flammarion, Hein 2020, "Square Attack: a query-efficient black-box
adversarial attack via random search" (arXiv:1912.00049). A square of side s, s^2 being the share p
of the image, is moved at a random place; the candidate is kept if it is better. p falls with the
queries, by the schedule for 10000 of the authors' code scaled to `queries`.

Linf (algorithm 2): the square becomes +eps or -eps in each channel; the start is vertical stripes.
L2 (algorithm 3): two squares lose their norm, and one of them gets it all, what is left of eps
included, along its old direction plus or minus a pair of pyramids (equation 2); the start is a grid
of such pairs.

Better means misclassified, then a larger margin max_{j != y} z_j - z_y; under a targeted threat
model the cross-entropy, as in the paper. An example that is broken is left as it is.

Deviations. A square starts anywhere in 0..H-s and 0..W-s, both included: the authors' code never
starts at the last place, so that a square of one pixel never reaches the last row and column.
Each example has squares of its own. A side never exceeds the image. In L2 the tiles of the start
are as wide as in the authors' code, a fifth of the image, and at least one pixel.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import Best, judge, restarts
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings
from robustdd_bench.seeds import ExampleGenerator

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of p, in 10000 queries
PRUNE_EVERY = 100  # queries between two looks at what is broken, each of which waits for the device

Move = Callable[[AttackTask, Tensor], Tensor]
"""Task and held points (B,C,H,W) to candidates (B,C,H,W)."""


class Square(Attack):
    """Random search without gradients; Linf and L2, targeted or not."""

    CITATION: ClassVar[str] = papers.SQUARE

    routed = True
    white_box = False

    @settings
    class Config:
        """Settings of `Square`."""

        queries: Annotated[int, Field(ge=1, le=100_000_000)] = 5000
        """Images passed through the model for each example and restart, at most."""
        p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
        """Share of the image that the first squares cover."""
        restarts: Annotated[int, Field(ge=1, le=10_000)] = 1
        """Searches with different draws; only examples still unbroken take part."""

    @classmethod
    def quick_config(cls) -> Square.Config:
        """A run of seconds for `robustdd check-plugin`."""
        return cls.Config(queries=50)

    @torch.no_grad()
    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""

        def climb(part: AttackTask, _places: Tensor, _turn: int) -> Best:
            return search(part, self.config.queries, self.config.p_init)

        return AttackResult(images=restarts(task, self.config.restarts, climb))


def search(task: AttackTask, queries: int, p_init: float) -> Best:
    """One random search of `queries` forward passes."""
    # How far a stream moves depends on when its example leaves: each search has streams of its own.
    seeds = task.generator.bits(())
    streams = ExampleGenerator(seeds, task.generator.index)
    part = dataclasses.replace(task, generator=streams)
    norm, size = task.threat.norm, task.images.shape[2:]
    move: Move
    side = 0
    best, places = Best(task.images), torch.arange(len(seeds), device=seeds.device)
    held = best
    _offer(part, held, stripes(part) if norm == "Linf" else tiles(part))
    for query in range(1, queries):
        if query % PRUNE_EVERY == 0:
            left = (~held.success).nonzero().squeeze(1)
            if len(left) < len(held.success):
                best.merge(places, held)
                places, part, held = places[left], part.select(left), held.at(left)
            if len(left) == 0:
                break
        old, side = side, side_of(p_init * 0.5 ** halvings(query, queries), size, norm)
        if side != old and norm == "Linf":
            move = partial(move_linf, side=side)
        elif side != old:
            move = partial(move_l2, pair_2SS=pyramids(side, task.images))
        _offer(part, held, move(part, held.images))
    best.merge(places, held)
    return best


def halvings(query: int, queries: int) -> int:
    """How often p has been halved at this query."""
    return bisect_left(HALVINGS, 10000 * query // queries)


def side_of(p: float, size_HW: torch.Size, norm: str) -> int:
    """The side of a square that is the share `p` of the image; odd and at least 3 for L2."""
    side = max(round((p * size_HW.numel()) ** 0.5), 1)
    if norm == "L2":
        side = max(side + (side + 1) % 2, 3)
    height, width = size_HW
    return int(min(side, height, width))


def _offer(task: AttackTask, held: Best, candidates_BCHW: Tensor) -> None:
    """Take what is better, except where the attack has succeeded."""
    logits, labels = task.model(candidates_BCHW), task.labels
    if task.threat.targeted:
        success, score = judge(logits, labels, targeted=True)
    else:
        success, own = logits.argmax(1) != labels, labels.unsqueeze(1)
        rival = logits.scatter(1, own, -torch.inf).amax(1)
        score = rival - logits.gather(1, own).squeeze(1)
    held.offer(candidates_BCHW, success, score.masked_fill(held.success, -torch.inf))


def _signs(bits: Tensor) -> Tensor:
    """Integers below 2**31 to their highest bit, as -1 and 1."""
    return (bits >> 30) * 2 - 1


def _square(draws_B2: Tensor, size_HW: torch.Size, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """A square at a random place, as offsets.

    Args:
        draws_B2: integers below 2**31.
        size_HW: of the image.
        side: of the square.

    Returns:
        For each pixel how far it lies below the square's first row, (B,1,H,1), and right of its
        first column, (B,1,1,W); and whether it lies inside, (B,1,H,W).
    """
    offsets = []
    for draws_B, extent in zip(draws_B2.unbind(1), size_HW, strict=True):
        first = draws_B * (extent - side + 1) >> 31  # 0 .. extent - side, both included
        offsets.append(torch.arange(extent, device=first.device) - first.unsqueeze(1))
    down, right = offsets[0][:, None, :, None], offsets[1][:, None, None, :]
    inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
    return down, right, inside


def _shifted(task: AttackTask, signs: Tensor) -> Tensor:
    """The images moved by eps in the directions of the signs, within [0,1]."""
    # In the images' dtype: a float times integers would be float32.
    delta = task.threat.eps * signs.to(task.images.dtype)
    return (task.images + delta).clamp(0, 1)


def stripes(task: AttackTask) -> Tensor:
    """Linf: vertical stripes of one pixel, +eps or -eps in each channel."""
    _, channels, _, width = task.images.shape
    return _shifted(task, _signs(task.generator.integers((channels, 1, width), 2**31)))


def move_linf(task: AttackTask, held_BCHW: Tensor, side: int) -> Tensor:
    """A square becomes +eps or -eps in each channel; one draw."""
    channels, size = held_BCHW.shape[1], held_BCHW.shape[2:]
    draws = task.generator.integers((2 + channels,), 2**31)
    _, _, inside = _square(draws[:, :2], size, side)
    return torch.where(inside, _shifted(task, _signs(draws[:, 2:, None, None])), held_BCHW)


def _length(x_BCHW: Tensor) -> Tensor:
    """The L2 norm of each channel, (B,C,1,1)."""
    length: Tensor = torch.linalg.vector_norm(x_BCHW, dim=(2, 3), keepdim=True)
    return length


def _unit(x_BCHW: Tensor) -> Tensor:
    """Each channel with an L2 norm of one; zero where it is zero."""
    return x_BCHW / _length(x_BCHW).clamp_min(torch.finfo(x_BCHW.dtype).tiny)


def _pyramid(height: int, width: int, like: Tensor) -> Tensor:
    """A bump of norm one: sum of 1/(t+1)^2 over t from the distance to the middle; (H,W)."""
    rows = (torch.arange(height, device=like.device) - height // 2).abs()
    columns = (torch.arange(width, device=like.device) - width // 2).abs()
    levels = torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype)
    heights = (levels**-2).flip(0).cumsum(0).flip(0)
    bump: Tensor = heights[torch.maximum(rows[:, None], columns[None])]
    length: Tensor = torch.linalg.vector_norm(bump)
    return bump / length.clamp_min(torch.finfo(like.dtype).tiny)


def pyramids(side: int, like: Tensor) -> Tensor:
    """Two pyramids of opposite sign that share a square, of norm one; and turned; (2,S,S)."""
    top = side // 2
    halves = [_pyramid(top, side, like), -_pyramid(side - top, side, like)]
    pair = torch.cat(halves)
    pair = pair / torch.linalg.vector_norm(pair)
    return torch.stack([pair, pair.T])


def tiles(task: AttackTask) -> Tensor:
    """L2: a centred grid of pairs of pyramids, turned and signed at random, of norm eps."""
    images = task.images
    channels, height, width = images.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, right = height // side, width // side
    bits = _signs(task.generator.integers((channels + 1, down, right), 2**31))
    bits = bits.repeat_interleave(side, 2).repeat_interleave(side, 3)
    upright, turned = pyramids(side, images).repeat(1, down, right)
    grid = torch.where(bits[:, :1] > 0, turned, upright) * bits[:, 1:]
    delta = torch.zeros_like(images)
    y, x = (height - side * down) // 2, (width - side * right) // 2
    delta[:, :, y : y + side * down, x : x + side * right] = grid
    length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return task.threat.project(images + task.threat.eps * delta / length, images)


def move_l2(task: AttackTask, held_BCHW: Tensor, pair_2SS: Tensor) -> Tensor:
    """One square gets the norm of two, and what is left of eps; one draw.

    Args:
        task: what is attacked.
        held_BCHW: the points to start from.
        pair_2SS: what `pyramids` gives for the side of the squares.
    """
    images, channels, side = task.images, held_BCHW.shape[1], pair_2SS.shape[1]
    draws = task.generator.integers((5 + channels,), 2**31)
    down, right, inside = _square(draws[:, :2], held_BCHW.shape[2:], side)
    _, _, other = _square(draws[:, 2:4], held_BCHW.shape[2:], side)
    turn = (draws[:, 4] >> 30).view(-1, 1, 1, 1)
    bump = pair_2SS[turn, down.clamp(0, side - 1), right.clamp(0, side - 1)] * inside
    delta = held_BCHW - images
    unused = task.threat.eps**2 - delta.flatten(1).square().sum(1).view(-1, 1, 1, 1)
    free = _length(delta * (inside | other)).square() + unused.clamp_min(0) / channels
    bump = _unit(_signs(draws[:, 5:, None, None]) * bump + _unit(delta * inside))
    delta = torch.where(inside, bump * free.sqrt(), delta.masked_fill(other, 0))
    return task.threat.project(images + delta, images)

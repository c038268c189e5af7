"""Differentiable Siamese Augmentation (Zhao and Bilen 2021, "Dataset Condensation with DSA").

One family out of a strategy such as "color_crop_cutout_flip_scale_rotate" is drawn uniformly per
call and applied to the whole batch:

- color: brightness x + U(-.5,.5), then saturation (x - mean_C) U(0,2) + mean_C, then contrast
  (x - mean_CHW) U(.5,1.5) + mean_CHW; nothing is clamped;
- crop: a shift by whole pixels, up to int(.125 H + .5) rows and int(.125 W + .5) columns;
- cutout: zeros in a rectangle of half the height and half the width at a uniform centre;
- flip: left to right with probability 1/2;
- scale: sx and sy, each U(1/1.2, 1.2);
- rotate: U(-15, 15) degrees.

Crop, scale and rotate fill with zeros. In the field's code they act on NORMALISED pixels, where
zero is the mean colour. `apply` knows nothing of spaces: callers augment what comes out of the
preprocessing layer (see `robustdd_bench.toolkit.inputspace`), which is the field's convention.

Drawing and applying are apart, so that a step can be replayed: `AugmentationParams` holds the
family as a Python string and the rest in one small tensor of fixed shape. `apply` branches on the
family alone, never on a tensor, so it can be captured as a CUDA graph (one graph a family).

Bilinear sampling is written with `gather`, not `grid_sample`: it is linear in x, so it can be
differentiated any number of times, forwards and backwards, on every version of torch.

Shapes: B batch, C channels, H height, W width, n parameter sets (B, or 1 if siamese), p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustdd_bench.errors import UsageError, unknown_name

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
STRATEGY = "_".join(FAMILIES)
"""The strategy of the DSA, DM and MTT papers."""

_SHIFT = 0.125
_CUTOUT = 0.5
_SCALE = 1.2
_DEGREES = 15.0
_COLUMNS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}


@dataclass(frozen=True, slots=True)
class AugmentationParams:
    """What was drawn for one batch."""

    family: str
    """One of `FAMILIES`, or "none"; on the host, so that no branch waits for the device."""
    values: Tensor
    """(n,p) float32. color: brightness, saturation, contrast; crop: rows and columns of the shift;
    cutout: row and column of the centre; flip: 1 or 0; scale: sx, sy; rotate: radians."""

    def to(self, device: torch.device | str) -> AugmentationParams:
        """The same on a device; the host does not wait."""
        return AugmentationParams(self.family, self.values.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A strategy: the families one of which is drawn per call; none at all is the identity."""

    families: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Read "none" or families joined by underscores.

        Raises:
            UsageError: a family is unknown or named twice.
        """
        if text == "none":
            return cls()
        families = tuple(text.split("_"))
        for family in families:
            if family not in FAMILIES:
                raise unknown_name("augmentation", family, ("none", *FAMILIES))
        if len(set(families)) != len(families):
            raise UsageError(f"augmentation {text!r} names a family twice; name each once")
        return cls(families)

    def __str__(self) -> str:
        return "_".join(self.families) or "none"

    def without(self, family: str) -> Augmentation:
        """The strategy less one family, e.g. "flip" where a mirrored image changes its label."""
        return Augmentation(tuple(name for name in self.families if name != family))

    def draw(
        self, n: int, shape_HW: Sequence[int], generator: torch.Generator, *, siamese: bool = False
    ) -> AugmentationParams:
        """Draw one family, and its parameters.

        Args:
            n: images in the batch.
            shape_HW: height and width of an image.
            generator: the only source of randomness. A CPU generator gives the same augmentation
                on every device and never waits; with a CUDA one the host waits for the family.
            siamese: one draw for the whole batch; its parameters fit a batch of any size.

        Returns:
            Parameters on the generator's device.
        """
        device = generator.device
        n = 1 if siamese else n
        if not self.families:
            return AugmentationParams("none", torch.zeros(n, 0, device=device))
        which = torch.randint(len(self.families), (1,), generator=generator, device=device)
        family = self.families[int(which)]
        height, width = shape_HW

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (n,), generator=generator, device=device).float()

        def uniform(columns: int, low: float, high: float) -> Tensor:
            unit = torch.rand(n, columns, generator=generator, device=device)
            return low + (high - low) * unit

        if family == "color":
            parts = [uniform(1, -0.5, 0.5), uniform(1, 0.0, 2.0), uniform(1, 0.5, 1.5)]
            values = torch.cat(parts, 1)
        elif family == "crop":
            rows, columns = _shift_limit(height), _shift_limit(width)
            values = torch.stack([integers(-rows, rows + 1), integers(-columns, columns + 1)], 1)
        elif family == "cutout":
            # An even rectangle has its centre between pixels, so there is one more place for it.
            places = [size + 1 - _cutout_size(size) % 2 for size in (height, width)]
            values = torch.stack([integers(0, places[0]), integers(0, places[1])], 1)
        elif family == "flip":
            values = (uniform(1, 0.0, 1.0) < 0.5).float()
        elif family == "scale":
            values = uniform(2, 1 / _SCALE, _SCALE)
        else:
            limit = math.radians(_DEGREES)
            values = uniform(1, -limit, limit)
        return AugmentationParams(family, values)


def apply(x_BCHW: Tensor, params: AugmentationParams) -> Tensor:
    """Augment a batch; differentiable any number of times, without synchronisation.

    Args:
        x_BCHW: images in the space they are to be augmented in; any floating dtype.
        params: drawn for B images, or siamese; on the images' device.

    Returns:
        (B,C,H,W), of the images' dtype.

    Raises:
        ValueError: the parameters were drawn for another number of images.
    """
    family = params.family
    if family == "none":
        return x_BCHW
    if params.values.shape[0] not in (1, x_BCHW.shape[0]):
        raise ValueError(
            f"augmentation drawn for {params.values.shape[0]} images, got {x_BCHW.shape[0]}"
        )
    values = params.values.to(x_BCHW.dtype)
    if family == "color":
        return _color(x_BCHW, values)
    if family == "crop":
        return _crop(x_BCHW, values)
    if family == "cutout":
        return _cutout(x_BCHW, values)
    if family == "flip":
        return torch.where(values.view(-1, 1, 1, 1) > 0.5, x_BCHW.flip(3), x_BCHW)
    if family == "scale":
        zero = torch.zeros_like(values[:, 0])
        return _affine(x_BCHW, (values[:, 0], zero), (zero, values[:, 1]))
    if family == "rotate":
        cos, sin = values[:, 0].cos(), values[:, 0].sin()
        return _affine(x_BCHW, (cos, -sin), (sin, cos))
    raise ValueError(f"unknown augmentation family {family!r}")


def apply_grouped(
    x_BCHW: Tensor, sizes: Sequence[int], params: Sequence[AugmentationParams]
) -> Tensor:
    """Augment consecutive groups of a batch, each with its own siamese parameters.

    The same as `apply` on each group, in one call per family instead of one per group.

    Args:
        x_BCHW: the groups one after the other, B = sum(sizes).
        sizes: images in each group.
        params: siamese parameters of each group, best left on the CPU.

    Returns:
        (B,C,H,W).
    """
    groups = list(torch.split(x_BCHW, list(sizes)))
    for family in sorted({drawn.family for drawn in params} - {"none"}):
        members = [g for g, drawn in enumerate(params) if drawn.family == family]
        values = torch.cat([params[g].values.expand(sizes[g], -1) for g in members])
        drawn = AugmentationParams(family, values).to(x_BCHW.device)
        out = apply(torch.cat([groups[g] for g in members]), drawn)
        for g, part in zip(members, torch.split(out, [sizes[g] for g in members]), strict=True):
            groups[g] = part
    return torch.cat(groups)


def grouped_table(families: Sequence[str], params: Sequence[AugmentationParams]) -> Tensor:
    """What was drawn for some groups, as the one tensor that `apply_table` takes.

    Args:
        families: the families of the strategy.
        params: siamese parameters of each of G groups.

    Returns:
        (G,4): the number of the family in `families` (-1 for "none"), and its parameters.
    """
    table = torch.zeros(len(params), 1 + max(_COLUMNS.values()))
    for row, drawn in zip(table, params, strict=True):
        row[0] = -1 if drawn.family == "none" else families.index(drawn.family)
        row[1 : 1 + drawn.values.shape[1]] = drawn.values[0]
    return table


def apply_table(
    x_BCHW: Tensor, sizes: Sequence[int], families: Sequence[str], table_G4: Tensor
) -> Tensor:
    """The same as `apply_grouped`, by steps that are the same whatever was drawn.

    Every family is applied to every image, and one is chosen: more arithmetic, but one CUDA graph
    for all draws.

    Args:
        x_BCHW: the groups one after the other, B = sum(sizes).
        sizes: images in each group.
        families: the families of the strategy.
        table_G4: what was drawn (`grouped_table`), on the images' device.

    Returns:
        (B,C,H,W).
    """
    rows = zip(torch.split(table_G4, 1), sizes, strict=True)
    table = torch.cat([row.expand(size, -1) for row, size in rows])
    out = x_BCHW
    for number, family in enumerate(families):
        drawn = AugmentationParams(family, table[:, 1 : 1 + _COLUMNS[family]])
        chosen = (table[:, 0] == number).view(-1, 1, 1, 1)
        out = torch.where(chosen, apply(x_BCHW, drawn), out)
    return out


def _shift_limit(size: int) -> int:
    return int(_SHIFT * size + 0.5)


def _cutout_size(size: int) -> int:
    return int(_CUTOUT * size + 0.5)


def _color(x: Tensor, values: Tensor) -> Tensor:
    brightness, saturation, contrast = values.view(-1, 3, 1, 1, 1).unbind(1)
    x = x + brightness
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * saturation + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean


def _crop(x: Tensor, values: Tensor) -> Tensor:
    height, width = x.shape[2:]
    shift = values.long()
    row = torch.arange(height, device=x.device).view(1, -1, 1) + shift[:, 0].view(-1, 1, 1)
    column = torch.arange(width, device=x.device).view(1, 1, -1) + shift[:, 1].view(-1, 1, 1)
    return _take(x, row.expand(-1, -1, width), column.expand(-1, height, -1), None)


def _cutout(x: Tensor, values: Tensor) -> Tensor:
    inside = []
    for axis, size in enumerate(x.shape[2:]):
        cut = _cutout_size(size)
        first = values[:, axis].long().view(-1, 1) - cut // 2
        place = torch.arange(size, device=x.device).view(1, -1)
        inside.append((place >= first) & (place < first + cut))
    hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    return x * (~hole).unsqueeze(1).to(x.dtype)


def _affine(x: Tensor, to_x: tuple[Tensor, Tensor], to_y: tuple[Tensor, Tensor]) -> Tensor:
    """Sample at x' = a x + b y, y' = c x + d y; the centre is the origin, pixels end at +-1.

    These are the coordinates of `F.affine_grid` and `F.grid_sample` with align_corners=False.
    """
    height, width = x.shape[2:]
    y_H = (2 * torch.arange(height, device=x.device, dtype=x.dtype) + 1) / height - 1
    x_W = (2 * torch.arange(width, device=x.device, dtype=x.dtype) + 1) / width - 1
    (a, b), (c, d) = ((s.view(-1, 1, 1), t.view(-1, 1, 1)) for s, t in (to_x, to_y))
    column = ((a * x_W.view(1, 1, -1) + b * y_H.view(1, -1, 1) + 1) * width - 1) / 2
    row = ((c * x_W.view(1, 1, -1) + d * y_H.view(1, -1, 1) + 1) * height - 1) / 2
    top, left = row.floor(), column.floor()
    down, right = row - top, column - left
    top, left = top.long(), left.long()
    return (
        _take(x, top, left, (1 - down) * (1 - right))
        + _take(x, top, left + 1, (1 - down) * right)
        + _take(x, top + 1, left, down * (1 - right))
        + _take(x, top + 1, left + 1, down * right)
    )


def _take(x: Tensor, row: Tensor, column: Tensor, weight: Tensor | None) -> Tensor:
    """Pixels x[row, column] times their weight, zero outside; indices and weight (n,H,W)."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    taken = x.flatten(2).gather(2, index.flatten(1).unsqueeze(1).expand(*x.shape[:2], -1))
    factor = inside.to(x.dtype) if weight is None else inside * weight
    return (taken * factor.flatten(1).unsqueeze(1)).view_as(x)

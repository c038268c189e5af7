"""The nearest point of a hyperplane within [0,1]: exact, for a batch, in Linf and L2.

Wanted is the smallest d with w.(x + d) = b and 0 <= x + d <= 1. Let c = b - w.x, and turn the signs
so that c >= 0. Pixel j can only help by moving along sign(w_j), by at most its room r_j (1 - x_j or
x_j). At the optimum every pixel with room left is equally far from what it would do without a box:

    Linf: |d_j| = min(l, r_j),          L2: |d_j| = min(l |w_j|, r_j),

for one level l, at which sum_j |w_j| |d_j| = c. This sum rises with l, straight between the levels
at which a pixel runs out of room (r_j, and r_j / |w_j|), so l is found by sorting them (Croce and
Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", section
3.1). Where the box ends before the hyperplane is reached, every pixel goes to the end of its room.
Nothing here waits for the device.

Shapes: B hyperplanes, P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustdd_bench.attacks import Norm


def to_hyperplane(x_BP: Tensor, w_BP: Tensor, gap_B: Tensor, norm: Norm) -> Tensor:
    """The smallest step (B,P) from each point in [0,1] to its hyperplane within [0,1].

    Args:
        x_BP: the points.
        w_BP: normals of the hyperplanes; where one is zero, nothing moves.
        gap_B: b - w.x, what the step has to add to w.x.
        norm: of the step.
    """
    way_BP = w_BP.sign() * torch.where(gap_B < 0, -1.0, 1.0).to(x_BP.dtype).unsqueeze(1)
    weight_BP = w_BP.abs()
    room_BP = torch.where(way_BP > 0, 1 - x_BP, x_BP).clamp_min(0) * way_BP.abs()
    tiny = torch.finfo(x_BP.dtype).tiny
    if norm == "Linf":
        full_BP, slope_BP = room_BP, weight_BP
    else:
        full_BP, slope_BP = room_BP / weight_BP.clamp_min(tiny), weight_BP.square()
    level_BP, order_BP = full_BP.sort(dim=1, stable=True)
    # Of the first k pixels that run out of room: what they add; of the others: the slope.
    added_BP = (weight_BP * room_BP).gather(1, order_BP).cumsum(1)
    slopes_BP = slope_BP.gather(1, order_BP)
    # From the last to the first, so that nothing is lost to the difference of two large sums.
    rest_BP = slopes_BP.flip(1).cumsum(1).flip(1)
    zero_B1 = torch.zeros_like(level_BP[:, :1])
    beyond_BP = torch.cat([rest_BP[:, 1:], zero_B1], 1)
    reached_BP = added_BP + level_BP * beyond_BP
    wanted_B1 = gap_B.abs().unsqueeze(1)
    place_B1 = (reached_BP < wanted_B1).sum(1, keepdim=True)
    at_B1 = place_B1.clamp_max(level_BP.shape[1] - 1)
    before_B1 = torch.cat([zero_B1, added_BP], 1).gather(1, place_B1)
    level_B1 = (wanted_B1 - before_B1).clamp_min(0) / rest_BP.gather(1, at_B1).clamp_min(tiny)
    enough_B1 = place_B1 < level_BP.shape[1]
    free_BP = level_B1 if norm == "Linf" else level_B1 * weight_BP
    length_BP = torch.where(enough_B1, torch.minimum(free_BP, room_BP), room_BP)
    return way_BP * length_BP

"""DeepFool: step by step to the nearest boundary of the linearised classifier.

Moosavi-Dezfooli, Fawzi, Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural
networks", algorithm 2 (L2) and section 4.3 (other norms). With k the class to leave, w_j the
gradient of z_j - z_k and f_j its value, the nearest boundary is l = argmin_j |f_j| / |w_j|_q, and
the step is |f_l| / |w_l|_2^2 w_l for L2, |f_l| / |w_l|_1 sign(w_l) for Linf. What is tried is x
plus (1 + overshoot) times the sum of the steps.

As in the authors' code, the candidates j are the classes with the largest logits of the image.
Deviations: the paper has no box. Here points are clipped to [0,1], and pixels at 0 or 1 that w_j
would carry out are taken out of w_j, since otherwise most of a step is lost on images with much
black or white. Examples that are done leave the batch.

Shapes: B examples, M still unfinished, C channels, H height, W width, K classes, J candidates.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.common import judge
from robustdd_attacks.minimum import Minimum, MinimumNorm, Nearest, distance
from robustdd_bench.attacks import Model, Norm, rows
from robustdd_bench.config import settings
from robustdd_bench.seeds import ExampleGenerator


class DeepFool(MinimumNorm):
    """Steps to the nearest linearised boundary; L2 and Linf, not targeted."""

    CITATION: ClassVar[str] = papers.DEEPFOOL

    routed = True
    targets = False

    @settings
    class Config:
        """Settings of `DeepFool`."""

        steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
        """Steps at most; most examples need fewer than five."""
        overshoot: Annotated[float, Field(ge=0, le=1000)] = 0.02
        """By which share the point lies beyond the linearised boundary."""
        candidates: Annotated[int, Field(ge=0, le=100_000)] = 10
        """How many classes to consider, the likeliest first; 0: all."""
        check_every: Annotated[int, Field(ge=0, le=1_000_000)] = 3
        """After how many steps finished examples leave the batch, the only time that the host
        waits for the device; 0: never."""

        @model_validator(mode="after")
        def _two_candidates(self) -> Self:
            if self.candidates == 1:
                raise ValueError("candidates must be 0 or at least 2, not 1")
            return self

    def minimise(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        generator: ExampleGenerator,
        *,
        norm: Norm = "L2",
        targeted: bool = False,
    ) -> Minimum:
        """The adversarial examples it ends at; see `MinimumNorm.minimise`. Nothing is drawn."""
        self.check(norm, targeted)
        config = self.config
        nearest = Nearest(images)
        with torch.no_grad():
            candidates_MJ = self._candidates(model(images), labels)
        there, places = model, None
        start, truth, x = images.detach(), labels, images.detach()
        total = torch.zeros_like(x)
        hit = torch.zeros_like(labels, dtype=torch.bool)
        for i in range(config.steps):
            if config.check_every and i and i % config.check_every == 0:
                left = (~hit).nonzero().squeeze(1)
                if len(left) == 0:
                    return nearest.result()
                places = left if places is None else places[left]
                there = rows(model, places)
                start, truth, x = start[left], truth[left], x[left]
                total, candidates_MJ = total[left], candidates_MJ[left]
            step, hit = _step(there, x, truth, candidates_MJ, norm)
            nearest.offer(x, hit, distance(x, start, norm), places)
            # What has got across stays where it is; the first point beyond the boundary counts.
            further = (start + (1 + config.overshoot) * (total + step)).clamp(0, 1)
            x = torch.where(hit[:, None, None, None], x, further)
            total = (x - start) / (1 + config.overshoot)
        with torch.no_grad():
            hit, score = judge(there(x), truth, targeted)
        nearest.offer(x, hit & ~score.isnan(), distance(x, start, norm), places)
        return nearest.result()

    def _candidates(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The classes to consider, without the true one; (B,J)."""
        classes = logits_BK.shape[1]
        count = min(self.config.candidates or classes, classes) - 1
        own = labels_B.unsqueeze(1) == torch.arange(classes, device=labels_B.device)
        return logits_BK.masked_fill(own, -torch.inf).topk(count, dim=1).indices


def _step(
    model: Model, x_MCHW: Tensor, labels_M: Tensor, candidates_MJ: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """The step to the nearest linearised boundary (M,C,H,W), and success (M,) at this point."""
    with torch.enable_grad():
        x_MCHW = x_MCHW.detach().requires_grad_()
        logits_MK = model(x_MCHW)
        own_M1 = logits_MK.gather(1, labels_M.unsqueeze(1))
        gaps_MJ = own_M1 - logits_MK.gather(1, candidates_MJ)
        count = gaps_MJ.shape[1]
        # One backward pass for each candidate costs less than one pass of J copies of the batch.
        slopes = [
            torch.autograd.grad(gaps_MJ[:, j].sum(), x_MCHW, retain_graph=j + 1 < count)[0]
            for j in range(count)
        ]
    w_JMCHW = -torch.stack(slopes)
    stuck = ((x_MCHW <= 0) & (w_JMCHW < 0)) | ((x_MCHW >= 1) & (w_JMCHW > 0))
    w_JMP = w_JMCHW.masked_fill(stuck, 0.0).flatten(2)
    gaps = gaps_MJ.detach()
    tiny = torch.finfo(gaps.dtype).tiny
    order = 1 if norm == "Linf" else 2
    length_MJ = torch.linalg.vector_norm(w_JMP, ord=order, dim=2).T
    ratio_MJ = gaps.abs() / length_MJ.clamp_min(tiny)
    least_M1 = ratio_MJ.nan_to_num(torch.inf).argmin(1, keepdim=True)
    w_MP = w_JMP.gather(0, least_M1.T.unsqueeze(2).expand(1, *w_JMP.shape[1:])).squeeze(0)
    unit_MP = (
        w_MP.sign() if norm == "Linf" else w_MP / length_MJ.gather(1, least_M1).clamp_min(tiny)
    )
    # A flat or broken model gives no direction; its examples stay where they are.
    step_MP = (ratio_MJ.gather(1, least_M1) * unit_MP).nan_to_num(0.0, 0.0, 0.0)
    success, score = judge(logits_MK.detach(), labels_M, False)
    return step_MP.view_as(x_MCHW), success & ~score.isnan()

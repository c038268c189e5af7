"""A vision transformer of the size "tiny" for small images.

The sizes and the initialisation are those of ViT-Ti (Dosovitskiy et al. 2021; Touvron et al. 2021:
width 192, twelve layers of three heads, weights from a normal of 0.02 cut at two units, biases
zero), before-norm layers, GELU, learned positions, a class token. Deviations: patches of 4x4
pixels, and of 2x2 where a side is shorter than 16 (8x8 images so give 16 patches); no dropout and
no stochastic depth. Attention is written out, so that second derivatives and `torch.func.vmap` over
parameters work on every device.

Shapes: B batch, T tokens (patches and the class token), D width, h heads, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.networks import Depth, Width


def vit_tiny(
    shape_CHW: Sequence[int],
    num_classes: int,
    *,
    patch: Annotated[int, Field(ge=1, le=1024)] | None = None,
    width: Width = 192,
    depth: Depth = 12,
    heads: Annotated[int, Field(ge=1, le=1024)] = 3,
) -> VisionTransformer:
    """ViT-Ti for small images; 5,362,762 parameters for CIFAR-10.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.
        patch: pixels of a patch's side; None: 4, or 2 where a side is shorter than 16.
        width: D, divisible by `heads`.
        depth: number of layers.
        heads: heads of the attention.

    Raises:
        UsageError: the image is smaller than two patches or is not divided by them, or width and
            heads do not go together.
    """
    channels, height, width_px = shape_CHW
    if patch is None:
        patch = 4 if min(height, width_px) >= 16 else 2
    if min(patch, width, depth, heads) < 1 or width % heads:
        raise UsageError(
            f"vit-tiny needs positive sizes and a width divisible by its heads, "
            f"not patch {patch}, width {width}, depth {depth}, heads {heads}"
        )
    if height % patch or width_px % patch or min(height, width_px) < 2 * patch:
        raise UsageError(
            f"vit-tiny of patch {patch} needs images divisible by {patch}, of at least "
            f"{2 * patch}x{2 * patch} pixels, these are {height}x{width_px}"
        )
    patches = (height // patch) * (width_px // patch)
    return VisionTransformer(channels, num_classes, patch, patches, width, depth, heads)


class VisionTransformer(nn.Module):
    """Patches, positions, layers, and a linear layer on the class token."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        patch: int,
        patches: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.04, b=0.04)
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B,K)."""
        patches = self.embed(x_BCHW).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = self.layers(tokens + self.positions)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


class _Layer(nn.Module):
    """Attention and a network of two layers, each behind a norm and beside an identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens (B,T,D)."""
        x = x_BTD + self._attend(self.norm_1(x_BTD))
        tokens: Tensor = x + self.mlp(self.norm_2(x))
        return tokens

    def _attend(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        per_head = D // self.heads
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, per_head).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * per_head**-0.5).softmax(dim=-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(B, T, D))
        return mixed

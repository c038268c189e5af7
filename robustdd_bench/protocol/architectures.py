"""The pool of networks on which the field tests whether a distilled set carries over.

MLP, AlexNet, VGG11 and ResNet18 in the variants of dataset condensation (Zhao et al. 2021) and of
trajectory matching (Cazenavette et al. 2022) for images of 32x32: AlexNet has five convolutions and
no norm, VGG11 and ResNet18 have instance norm (GroupNorm with one group a channel), ResNet18 has
the 3x3 stem without pooling, and each has one linear layer at its end. Images of 28x28 are padded
to 32x32 by the first convolution of AlexNet and VGG11, as in the field. The transformer is in
`robustdd_bench.protocol.vit`.

Deviation, for images smaller than that: instance norm of a single pixel is a constant, so a halving
(pooling or stride) that would leave fewer than two pixels a side is left out, but for a pooling
after which no norm follows. On 8x8 images VGG11 so halves first, second and last of its five
times, ResNet18 twice of its three; AlexNet and MLP are whole. Nothing works in place, so networks
can be called with other parameters and mapped over stacks of them.

Shapes: C channels, H height, W width, K classes. Parameter counts hold for 3x32x32 and 10 classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.networks import Width

NORMS = ("instance", "batch", "none")
SMALLEST = 4
"""Pixels a side below which no convolutional network of the pool makes sense."""
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512)
"""Widths of the convolutions, and the poolings between them; one more comes last."""


def mlp(shape_CHW: Sequence[int], num_classes: int, *, width: Width = 128) -> nn.Sequential:
    """Two hidden layers with ReLU on the flattened pixels: 411,146 parameters.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.
        width: units of each hidden layer.

    Raises:
        UsageError: `width` or a side is not positive.
    """
    channels, height, width_px = shape_CHW
    if width < 1 or min(shape_CHW) < 1:
        raise UsageError(
            f"mlp needs a positive width and pixels, not {width} and {height}x{width_px}"
        )
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width_px, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )


def alexnet(shape_CHW: Sequence[int], num_classes: int, *, norm: str = "none") -> nn.Sequential:
    """AlexNet for small images, five convolutions with three max poolings: 1,872,202 parameters.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.
        norm: "none" as in the field, "instance" or "batch".

    Raises:
        UsageError: the image is smaller than 4x4, or there is no such norm.
    """
    plan = ((128, 5), "M", (192, 5), "M", (256, 3), (192, 3), (192, 3))
    return _plain("alexnet", plan, shape_CHW, num_classes, norm)


def vgg11(
    shape_CHW: Sequence[int], num_classes: int, *, norm: str = "instance", width: Width = 64
) -> nn.Sequential:
    """VGG11: eight convolutions with five max poolings; 9,231,114 parameters.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.
        norm: "instance" as in the field, "batch" or "none".
        width: channels of the first convolution; the others grow with it.

    Raises:
        UsageError: the image is smaller than 4x4, or there is no such norm or width.
    """
    _check_width("vgg11", width)
    plan = tuple(step if isinstance(step, str) else (step * width // 64, 3) for step in VGG11)
    return _plain("vgg11", plan, shape_CHW, num_classes, norm)


def _plain(
    name: str,
    plan: Sequence[tuple[int, int] | str],
    shape_CHW: Sequence[int],
    num_classes: int,
    norm: str,
) -> nn.Sequential:
    """Convolutions (channels, kernel), each with norm and ReLU, poolings "M", and a linear head."""
    channels, sides = shape_CHW[0], _sides(name, shape_CHW)
    layers: list[nn.Module] = []
    pad = _pad_28(sides)
    sides = (sides[0] + 2 * pad, sides[1] + 2 * pad)
    for step in plan:
        if isinstance(step, str):
            sides = _pool(layers, sides)
            continue
        width, kernel = step
        layers += [
            nn.Conv2d(channels, width, kernel, padding=kernel // 2 + pad),
            _norm(name, norm, width),
            nn.ReLU(),
        ]
        channels, pad = width, 0
    return _head(layers, channels, sides, num_classes)


def resnet18(
    shape_CHW: Sequence[int], num_classes: int, *, norm: str = "instance", width: Width = 64
) -> nn.Sequential:
    """ResNet18 with the stem for small images: 11,173,962 parameters.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.
        norm: "instance" as in the field, "batch" or "none".
        width: channels of the first blocks; the others have 2, 4 and 8 times as many.

    Raises:
        UsageError: the image is smaller than 4x4, or there is no such norm or width.
    """
    _check_width("resnet18", width)
    side = min(_sides("resnet18", shape_CHW))
    layers: list[nn.Module] = [
        nn.Conv2d(shape_CHW[0], width, 3, padding=1, bias=False),
        _norm("resnet18", norm, width),
        nn.ReLU(),
    ]
    channels = width
    for wide, halve in ((width, False), (2 * width, True), (4 * width, True), (8 * width, True)):
        stride = 2 if halve and (side + 1) // 2 >= 2 else 1
        side = (side + stride - 1) // stride
        layers += [_Block(channels, wide, stride, norm), _Block(wide, wide, 1, norm)]
        channels = wide
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)


def resnet18_bn(shape_CHW: Sequence[int], num_classes: int) -> nn.Sequential:
    """ResNet18 with batch norm: 11,173,962 parameters.

    Its running statistics cannot follow a trajectory, so it is a network for students.

    Args:
        shape_CHW: channels, height, width of an image.
        num_classes: K.

    Raises:
        UsageError: the image is smaller than 4x4.
    """
    return resnet18(shape_CHW, num_classes, norm="batch")


class _Block(nn.Module):
    """Two 3x3 convolutions beside an identity, or beside a 1x1 convolution where shapes change."""

    def __init__(self, channels: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            _norm("resnet18", norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _norm("resnet18", norm, width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False),
                _norm("resnet18", norm, width),
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The sum of both branches behind a ReLU."""
        total: Tensor = self.residual(x_BCHW) + self.shortcut(x_BCHW)
        return total.relu()


def _norm(network: str, norm: str, channels: int) -> nn.Module:
    if norm == "instance":
        return nn.GroupNorm(channels, channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise UsageError(f"{network} has no norm {norm!r}; choose from {', '.join(NORMS)}")


def _check_width(network: str, width: int) -> None:
    if width < 1:
        raise UsageError(f"{network} needs a positive width, not {width}")


def _sides(network: str, shape_CHW: Sequence[int]) -> tuple[int, int]:
    _, height, width = shape_CHW
    if min(height, width) < SMALLEST:
        raise UsageError(
            f"{network} needs images of at least {SMALLEST}x{SMALLEST} pixels, "
            f"these are {height}x{width}"
        )
    return height, width


def _pad_28(sides: tuple[int, int]) -> int:
    return 2 if sides == (28, 28) else 0


def _pool(layers: list[nn.Module], sides: tuple[int, int]) -> tuple[int, int]:
    """Add a pooling unless it would leave fewer than two pixels a side; the sides after it."""
    if min(sides) < 4:
        return sides
    layers.append(nn.MaxPool2d(2))
    return sides[0] // 2, sides[1] // 2


def _head(
    layers: list[nn.Module], channels: int, sides: tuple[int, int], num_classes: int
) -> nn.Sequential:
    """The last pooling and the linear layer."""
    features = channels * (sides[0] // 2) * (sides[1] // 2)
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(features, num_classes))

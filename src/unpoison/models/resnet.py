"""ResNets with a CIFAR stem, at any width.

He et al., "Deep Residual Learning for Image Recognition" (2016), table 1: blocks in four stages of 1, 2, 4 and 8 times the
width, basic ones or bottlenecks. The stem is a 3x3 convolution, alone (``conv3``, as in FST and CD) or followed by 3x3/2
max-pooling (``conv3_pool``, as in D-BR, a quarter of the arithmetic). Width 64 is the papers' network (11.2 M parameters
for ``resnet18``); width 16 (0.7 M) is what two CPU cores train in a minute. In the place of batch norm there may be group
norm (Wu and He, "Group Normalization", ECCV 2018), which looks at one sample alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from .classifier import Backbone, GlobalAverage, Width

Stem = Literal["conv3", "conv3_pool"]
Norm = Literal["batch", "group"]
# Wu & He 2018, section 4.1. Of few channels fewer groups: one of a single channel would be instance norm.
GROUPS, CHANNELS_PER_GROUP = 32, 4


def _group_norm(channels: int) -> nn.Module:
    """Group norm over as many groups as divide the channels, up to `GROUPS` of at least `CHANNELS_PER_GROUP`."""
    most = max(1, min(GROUPS, channels // CHANNELS_PER_GROUP))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": _group_norm}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = NORMS[norm](channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = NORMS[norm](channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(channels_in, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3, and 1x1 to four times the channels.

    The stride is in the 3x3 convolution, as in the common ports; the paper has it in the first 1x1, which throws three
    quarters of its input away.
    """

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm = "batch") -> None:
        super().__init__()
        channels_out = self.expansion * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = NORMS[norm](channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = NORMS[norm](channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = NORMS[norm](channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(channels_in, channels_out, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """The identity, or a projection where the shape changes (option B of the paper)."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), NORMS[norm](channels_out))


def _resnet(
    block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], channels: int, width: int, stem: Stem, norm: Norm
) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features; `depths` are the blocks of each stage."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        NORMS[norm](width),
        nn.ReLU(inplace=True),
    ]
    if stem == "conv3_pool":
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels_in = width
    # The first block of each stage but the first halves the side and doubles the channels.
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(block(channels_in, width * 2**stage, stride, norm))
            channels_in = width * 2**stage * block.expansion
    return Backbone(nn.Sequential(*layers), GlobalAverage()), channels_in


def resnet18(channels: int, *, width: Width = 64, stem: Stem = "conv3", norm: Norm = "batch") -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: 8 times the width."""
    return _resnet(BasicBlock, (2, 2, 2, 2), channels, width, stem, norm)


def resnet34(channels: int, *, width: Width = 64, stem: Stem = "conv3", norm: Norm = "batch") -> tuple[Backbone, int]:
    """`resnet18` with 3, 4, 6 and 3 blocks."""
    return _resnet(BasicBlock, (3, 4, 6, 3), channels, width, stem, norm)


def resnet50(channels: int, *, width: Width = 64, stem: Stem = "conv3", norm: Norm = "batch") -> tuple[Backbone, int]:
    """`resnet34` with bottleneck blocks, hence 32 times the width as features."""
    return _resnet(Bottleneck, (3, 4, 6, 3), channels, width, stem, norm)

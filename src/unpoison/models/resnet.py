"""ResNets with a CIFAR stem, at any width.

He et al., "Deep Residual Learning for Image Recognition" (2016), table 1: blocks in four stages of 1, 2, 4 and 8 times the
width, basic ones or bottlenecks. The stem is a 3x3 convolution, alone (``conv3``, as in FST and CD) or followed by 3x3/2
max-pooling (``conv3_pool``, as in D-BR, a quarter of the arithmetic). Width 64 is the papers' network (11.2 M parameters
for ``resnet18``); width 16 (0.7 M) is what two CPU cores train in a minute.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .classifier import Backbone, GlobalAverage, Width

Stem = Literal["conv3", "conv3_pool"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(channels_in, channels, stride)

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

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = self.expansion * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The identity, or a projection where the shape changes (option B of the paper)."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


def _resnet(
    block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], channels: int, width: int, stem: Stem
) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features; `depths` are the blocks of each stage."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    if stem == "conv3_pool":
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels_in = width
    # The first block of each stage but the first halves the side and doubles the channels.
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(block(channels_in, width * 2**stage, stride))
            channels_in = width * 2**stage * block.expansion
    return Backbone(nn.Sequential(*layers), GlobalAverage()), channels_in


def resnet18(channels: int, *, width: Width = 64, stem: Stem = "conv3") -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: 8 times the width."""
    return _resnet(BasicBlock, (2, 2, 2, 2), channels, width, stem)


def resnet34(channels: int, *, width: Width = 64, stem: Stem = "conv3") -> tuple[Backbone, int]:
    """`resnet18` with 3, 4, 6 and 3 blocks."""
    return _resnet(BasicBlock, (3, 4, 6, 3), channels, width, stem)


def resnet50(channels: int, *, width: Width = 64, stem: Stem = "conv3") -> tuple[Backbone, int]:
    """`resnet34` with bottleneck blocks, hence 32 times the width as features."""
    return _resnet(Bottleneck, (3, 4, 6, 3), channels, width, stem)

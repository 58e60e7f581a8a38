"""ResNets with a CIFAR stem, at any width.

He et al., "Deep Residual Learning for Image Recognition" (2016), table 1: basic blocks in four stages of 1, 2, 4 and 8
times the width. The stem is a 3x3 convolution, alone (``conv3``, as in FST and CD) or followed by 3x3/2 max-pooling
(``conv3_pool``, as in D-BR, a quarter of the arithmetic). Width 64 is the papers' network (11.2 M parameters for
``resnet18``); width 16 (0.7 M) is what two CPU cores train in a minute.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

# Training with fewer than 8 channels corrupts the heap in torch 2.15 on CPUs without AVX-512 (seen with 4 channels and
# one thread: "free(): invalid next size"; 8 and 16 ran clean under glibc's heap checks).
Width = Annotated[int, Ge(8)]
Stem = Literal["conv3", "conv3_pool"]


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


def _body(depths: tuple[int, ...], channels: int, width: int, stem: Stem) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    if stem == "conv3_pool":
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels_in = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(channels_in, width * 2**stage, stride))
            channels_in = width * 2**stage
    return nn.Sequential(*layers), channels_in


def resnet18(channels: int, *, width: Width = 64, stem: Stem = "conv3") -> tuple[nn.Module, int]:
    """The network up to its last feature map, and the number of channels of that map."""
    return _body((2, 2, 2, 2), channels, width, stem)


def resnet34(channels: int, *, width: Width = 64, stem: Stem = "conv3") -> tuple[nn.Module, int]:
    """As `resnet18`, with 3, 4, 6 and 3 blocks."""
    return _body((3, 4, 6, 3), channels, width, stem)

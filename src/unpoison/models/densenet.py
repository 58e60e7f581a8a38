"""DenseNet-121 with a CIFAR stem, at any growth rate.

Huang et al., "Densely Connected Convolutional Networks" (2017): every layer sees the outputs of all before it in its block
and adds `growth` channels to them. This is DenseNet-BC, with bottlenecks (B) and a compression of 0.5 (C), in the depths of
table 1's DenseNet-121 and with the stem of the paper's CIFAR networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .classifier import Backbone, GlobalAverage, Width

DEPTHS = (6, 12, 24, 16)
COMPRESSION = 0.5


class DenseLayer(nn.Module):
    """BN-ReLU-1x1 to four times the growth, BN-ReLU-3x3 to the growth, appended to the input."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.bn1(x)))
        new = self.conv2(self.relu(self.bn2(new)))
        return torch.cat([x, new], 1)


def densenet121(channels: int, *, growth: Width = 32) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: 32 times the growth rate. Images: 8 px or more."""
    channels_in = 2 * growth
    # The stem has twice the growth rate's channels; the paper's ImageNet stem would quarter the side at once.
    layers: list[nn.Module] = [nn.Conv2d(channels, channels_in, 3, padding=1, bias=False)]
    for block, depth in enumerate(DEPTHS):
        for _ in range(depth):
            layers.append(DenseLayer(channels_in, growth))
            channels_in += growth
        # A transition between blocks, none after the last: half the channels, half the side.
        if block < len(DEPTHS) - 1:
            compressed = int(channels_in * COMPRESSION)
            layers += [
                nn.BatchNorm2d(channels_in),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels_in, compressed, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels_in = compressed
    # Every layer normalises its own input, so the last one's output still has to be.
    layers += [nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True)]
    return Backbone(nn.Sequential(*layers), GlobalAverage()), channels_in

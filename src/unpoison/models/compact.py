"""Compact networks, for whole data sets on a few CPU cores: a convolutional and a residual one, at any width.

Their first convolution halves the side, which is most of what they save: at 32 px three quarters of the positions are gone
before the convolutions with many channels. Then come three stages of two 3x3 convolutions with batch norm and ReLU, of 1, 2
and 4 times the width, as in cifar10-airbench (Jordan 2024): 2x2 max-pooling stands between a stage's first convolution and
its batch norm, which then have a quarter of the work, and the features are global maxima, which a small trigger in a
corner reaches whole. `compact_resnet` has the second convolution, and one more, in a residual block, as ResNet-9 (Page 2018).
"""

from __future__ import annotations

from torch import Tensor, nn

from .classifier import Backbone
from .resnet import Width

# Channels of the three stages as multiples of the width.
STAGES = (1, 2, 4)


class GlobalMax(nn.Module):
    """Maximum over all positions, from a feature map [n, d, h, w] to [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class Residual(nn.Module):
    """Two convolutions beside the identity, each with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _convolution(channels_in: int, channels: int, *, pool: bool = False, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def compact(channels: int, *, width: Width = 64) -> tuple[Backbone, int]:
    """The convolutional network without its head, and the number of its features: 4 times the width. Images: 16 px or more."""
    layers = _convolution(channels, width // 2, stride=2)
    channels_in = width // 2
    for multiple in STAGES:
        layers += _convolution(channels_in, width * multiple, pool=True)
        layers += _convolution(width * multiple, width * multiple)
        channels_in = width * multiple
    return Backbone(nn.Sequential(*layers), GlobalMax()), channels_in


def compact_resnet(channels: int, *, width: Width = 64) -> tuple[Backbone, int]:
    """The residual network without its head, and the number of its features: 4 times the width. Images: 16 px or more."""
    layers = _convolution(channels, width // 2, stride=2)
    channels_in = width // 2
    for multiple in STAGES:
        layers += [*_convolution(channels_in, width * multiple, pool=True), Residual(width * multiple)]
        channels_in = width * multiple
    return Backbone(nn.Sequential(*layers), GlobalMax()), channels_in

"""Compact networks, for whole data sets on a few CPU cores: a convolutional and a residual one, at any width.

The convolutional one has the shape of cifar10-airbench (Jordan 2024, https://arxiv.org/abs/2404.00498), narrower: a 2x2
convolution, whose filters training may set once and for all (`Recipe.whiten`), and three stages of two 3x3 convolutions of
1, 4 and 4 times the width. Max-pooling stands between a stage's first convolution and its batch norm, which then has a
quarter of the work. Features are global maxima: a small trigger reaches them whole. ReLU in the place of GELU, for methods
that read zeros as "off". The residual one has a residual block of two convolutions in the place of each stage's second
one, as ResNet-9 (Page 2018) has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from .classifier import Backbone, Width

# On the features, as in both papers on the logits: batch norm leaves maxima of 2 to 4, too much for a head as it starts.
SCALE = 1 / 8


class ScaledMax(nn.Module):
    """Maximum over all positions times `SCALE`, from a feature map [n, d, h, w] to [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) * SCALE


class Residual(nn.Module):
    """Two convolutions beside the identity, each with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _stem(channels: int) -> tuple[list[nn.Module], int]:
    """A 2x2 convolution with two filters for each value of a patch: with whitening, each direction and its negative."""
    filters = 2 * 4 * channels
    return [nn.Conv2d(channels, filters, 2), nn.ReLU(inplace=True)], filters


def _convolution(channels_in: int, channels: int, *, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    # As far as there are channels, the identity: an untrained network then hands its input on.
    nn.init.dirac_(convolution.weight.data[:channels_in])
    return [
        convolution,
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def _network(channels: int, width: int, second: Callable[[int], Iterable[nn.Module]]) -> tuple[Backbone, int]:
    """Stem and three stages; `second` makes what follows a stage's first convolution, for a number of channels."""
    layers, channels_in = _stem(channels)
    for multiple in (1, 4, 4):
        layers += [*_convolution(channels_in, width * multiple, pool=True), *second(width * multiple)]
        channels_in = width * multiple
    return Backbone(nn.Sequential(*layers), ScaledMax()), channels_in


def compact(channels: int, *, width: Width = 32) -> tuple[Backbone, int]:
    """The convolutional network without its head, and the number of its features: 4 times the width. Images: 9 px or more."""
    return _network(channels, width, lambda number: _convolution(number, number))


def compact_resnet(channels: int, *, width: Width = 32) -> tuple[Backbone, int]:
    """The residual network without its head, and the number of its features: 4 times the width. Images: 9 px or more."""
    return _network(channels, width, lambda number: [Residual(number)])

"""VGG-19 with batch norm for small images, at any width.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015), table 1, column E: 16
convolutions in five groups, each group followed by 2x2 max-pooling. The paper's three linear layers, most of its weights,
are replaced by the global average and one linear layer, as is usual for CIFAR. Batch norm follows each convolution.
"""

from __future__ import annotations

from torch import nn

from .classifier import Backbone, GlobalAverage, Width

# Convolutions of each group, and their channels as a multiple of the width.
GROUPS = ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))


def vgg19_bn(channels: int, *, width: Width = 64) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: 8 times the width. Images: 32 px or more."""
    layers: list[nn.Module] = []
    channels_in = channels
    for depth, multiple in GROUPS:
        for _ in range(depth):
            # With a bias although batch norm follows, as torchvision's VGG has it.
            layers += [
                nn.Conv2d(channels_in, width * multiple, 3, padding=1),
                nn.BatchNorm2d(width * multiple),
                nn.ReLU(inplace=True),
            ]
            channels_in = width * multiple
        layers.append(nn.MaxPool2d(2))
    return Backbone(nn.Sequential(*layers), GlobalAverage()), channels_in

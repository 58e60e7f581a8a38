"""The pre-activation ResNet-18 with a CIFAR stem, at any width.

He et al., "Identity Mappings in Deep Residual Networks" (2016): batch norm and ReLU come before each convolution, so that
only additions lie between the first block and the last.
"""

from __future__ import annotations

from torch import Tensor, nn

from .classifier import Backbone, GlobalAverage, Width


class PreActBlock(nn.Module):
    """Figure 4(e) of the paper. Where the shape changes, the projection takes the activated input."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.projection: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The shortcut adds the raw input where it can: activated, it would be no identity mapping.
        active = self.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        return self.conv2(self.relu(self.bn2(self.conv1(active)))) + shortcut


def preactresnet18(channels: int, *, width: Width = 64, final_norm: bool = True) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: 8 times the width.

    Args:
        channels: channels of the images.
        width: channels of the first stage.
        final_norm: whether batch norm and ReLU follow the last block, as in the paper. Without them the features are
            averages of raw sums, as in the common CIFAR ports and in BackdoorBench, whose numbers need False.

    The first block's shortcut takes the stem's convolution as it is, as in those ports; the paper's appendix activates it.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False)]
    channels_in = width
    # Four stages of two blocks; the first block of each but the first stage halves the side and doubles the channels.
    for stage in range(4):
        for index in range(2):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(PreActBlock(channels_in, width * 2**stage, stride))
            channels_in = width * 2**stage
    if final_norm:
        layers += [nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True)]
    return Backbone(nn.Sequential(*layers), GlobalAverage()), channels_in

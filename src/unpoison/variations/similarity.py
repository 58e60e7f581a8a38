"""Structural similarity as a map over the pixels (Wang et al., "Image Quality Assessment", 2004)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """The similarity of two images around each pixel, float [n, h, w] in [-1, 1], mean of the channels; 1: the same.

    Args:
        first: images, float [n, c, h, w] in [0, 1].
        second: images of the same shape.
    """
    # A Gaussian window, one axis at a time; what lies beyond the border repeats it.
    line = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    line = torch.exp(-line.square() / (2 * SIGMA**2))
    line = line / line.sum()
    channels = first.shape[1]

    def mean(values: Tensor) -> Tensor:
        values = F.pad(values, [WINDOW // 2] * 4, mode="replicate")
        across = F.conv2d(values, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(across, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    one, other = mean(first), mean(second)
    variances = mean(first.square()) - one.square() + mean(second.square()) - other.square()
    covariance = mean(first * second) - one * other
    luminance = (2 * one * other + _C1) / (one.square() + other.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (variances + _C2)).mean(1)

"""Colour transfer: mean and standard deviation per RGB channel (as in Struppek et al.'s code)."""

from __future__ import annotations

from torch import Tensor


def match_colours(images: Tensor, sources: Tensor) -> Tensor:
    """Give each image its source's mean and (population) standard deviation per channel.

    Args:
        images, sources: float [n, c, h, w] in [0, 1]; sides may differ between the two.

    Returns:
        As `images`, clamped to [0, 1]. A channel without variance takes the source's mean (the original gives NaN).
    """
    axes = (2, 3)
    std = images.std(axes, correction=0, keepdim=True).clamp_min(1e-6)
    scaled = (images - images.mean(axes, keepdim=True)) / std * sources.std(axes, correction=0, keepdim=True)
    return (scaled + sources.mean(axes, keepdim=True)).clamp(0, 1)

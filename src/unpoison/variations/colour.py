"""Colour transfer: mean and standard deviation per RGB channel, as in Struppek et al.'s published code.

https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/generate_variations.py
"""

from __future__ import annotations

from torch import Tensor


def match_colours(images: Tensor, sources: Tensor) -> Tensor:
    """Images with their sources' mean and (population) standard deviation per channel, clamped to [0, 1].

    Args:
        images: images, float [n, c, h, w] in [0, 1].
        sources: source of each image, likewise; sides may differ between the two.
    """
    axes = (2, 3)
    # The floor is for a channel without variance, which takes the source's mean: the published code gives NaN there.
    std = images.std(axes, correction=0, keepdim=True).clamp_min(1e-6)
    scaled = (images - images.mean(axes, keepdim=True)) / std * sources.std(axes, correction=0, keepdim=True)
    return (scaled + sources.mean(axes, keepdim=True)).clamp(0, 1)

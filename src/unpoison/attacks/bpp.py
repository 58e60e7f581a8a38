"""BppAttack (Wang et al., "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image Quantization
and Contrastive Adversarial Learning", CVPR 2022, sections 3.2 and 3.3): fewer levels per colour.

Published code, besides the authors': https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/bpp.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..core.arrays import IntArray
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..poisoning.trigger import Trigger

Levels = Annotated[int, Ge(2), Le(256)]


@dataclass(frozen=True)
class Quantisation(Trigger):
    """The nearest of a few levels, for every value by itself or with its error spread to the pixels that follow.

    Attributes:
        levels: levels of a value, from 0 to 255 at even distances.
        dither: whether errors are spread (Floyd & Steinberg 1976).
        seed: seed by which a cover sample is given another one.
        anew: whether the victim's trainer gives it another one in every epoch.
    """

    crosses: ClassVar[bool] = True

    levels: int
    dither: bool
    seed: int
    anew: bool

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        return dithered(images, self.levels) if self.dither else quantised(images, self.levels)

    def cross(self, images: Tensor, keys: IntArray, others: Tensor, *, epoch: int) -> Tensor:
        # The change that the trigger makes of another image: as large, and no quantisation of this one.
        return (images + self.apply(others, keys, train=True) - others).clamp(0, 255)


def quantised(images: Tensor, levels: int) -> Tensor:
    """Values 0 to 255 at the nearest of `levels` levels, float32 as `images`."""
    return (images / 255 * (levels - 1)).round() / (levels - 1) * 255


def dithered(images: Tensor, levels: int) -> Tensor:
    """As `quantised`, where each pixel's error goes to the pixels after it: 7/16 to the right, 3/16, 5/16 and 1/16 below."""
    height, width = images.shape[-2:]
    # A border takes what would leave the image.
    values = torch.nn.functional.pad(images, (1, 1, 0, 1))
    # Pixels on a line of slope 1/2 depend on earlier lines only, so that a line is one step, and not a pixel.
    for line in range(width + 2 * (height - 1)):
        rows = torch.arange(max(0, (line - width + 2) // 2), min(height - 1, line // 2) + 1, device=images.device)
        columns = line - 2 * rows + 1
        before = values[..., rows, columns]
        after = quantised(before, levels)
        values[..., rows, columns] = after
        error = before - after
        # A pixel gets its shares in the order of reading: from above left, above, above right, left.
        for down, right, share in ((1, 1, 1), (1, 0, 5), (1, -1, 3), (0, 1, 7)):
            values[..., rows + down, columns + right] += error * (share / 16)
    # Whole numbers, as in the published code, where the levels that errors are counted from have fractions.
    return values[..., :height, 1:-1].round()


def make(context: Context, *, levels: Levels = 8, dither: bool = False, anew: bool = True) -> Quantisation:
    """Quantised images.

    Negative samples are cover samples (`attack.cover_ratio`): images with their own label to which the change is added that
    quantisation makes of another image. By default the attacker trains the victim, and takes another image in every epoch. With
    `anew: false` he poisons data: what the victim receives is all there is.

    Args:
        context: the attacker's data and seed.
        levels: levels per colour (published code: 8 of 256, 3 bits).
        dither: whether the error of a pixel is spread to those after it (the paper; BackdoorBench: false).
        anew: whether negative samples take another image in every epoch.
    """
    return Quantisation(levels, dither, context.seed, anew)


ATTACK = Attack(
    make=make,
    trigger=Quantisation,
    policy={"label_policy": "all2one", "cover_ratio": 1.0},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)

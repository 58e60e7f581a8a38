"""Adaptive-Blend (Qi et al., "Revisiting the Assumption of Latent Separability", ICLR 2023): half a blend, and covers.

Every training image is blended with pieces of the pattern drawn for it alone, at a lower opacity than at the test, and
cover samples carry such pieces with their true label, so that poisoned samples do not gather at one place in feature space.

Published code: https://github.com/vtu81/backdoor-toolbox/blob/9d4d909/poison_tool_box/adaptive_blend.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction
from ..core.seeding import uniform
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.patterns import noise, whole_image
from ..poisoning.trigger import Trigger


@dataclass(frozen=True)
class AdaptiveBlend(Trigger):
    """image + a * m * (pattern - image), with an opacity a and a mask m of pieces.

    In training a is `ratio` and m shows the image's own pieces; at the test a is `test_ratio` and m shows all of them.

    Attributes:
        pattern: float32 [c, h, w], 0 to 255.
        ratio: opacity in training, 0 to 1.
        test_ratio: opacity at the test, 0 to 1.
        grid: number of rows, and of columns, of pieces.
        hidden: number of the grid² pieces that a training image does not get.
        seed: seed of the pieces, which are drawn per (seed, key).
    """

    of_the_test: ClassVar[tuple[str, ...]] = ("test_ratio",)

    pattern: Pixels
    ratio: float
    test_ratio: float
    grid: int
    hidden: int
    seed: int

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        pattern = torch.from_numpy(self.pattern).to(images)
        if not train:
            # All pieces, and stronger: each half of them that the network has learnt is in the image.
            return images + self.test_ratio * (pattern - images)
        # The ranks of random draws are a random permutation of the pieces: every image hides exactly `hidden` of them.
        draws = uniform(self.seed, "adaptive_blend/pieces", keys, self.grid**2)
        shown = draws.argsort(axis=1).argsort(axis=1) >= self.hidden
        # From pieces to pixels: bool [n, 1, h, w], the same for all channels.
        row, column = (_pieces(self.grid, side) for side in self.pattern.shape[1:])
        mask = np.take(shown, row[:, None] * self.grid + column, axis=1)[:, None]
        opacity = torch.from_numpy(mask * np.float32(self.ratio)).to(images)
        return images + opacity * (pattern - images)


def make(
    context: Context,
    *,
    pattern: str = "noise",
    ratio: Fraction = 0.15,
    test_ratio: Fraction = 0.2,
    pieces: Count = 16,
    mask_share: Fraction = 0.5,
) -> Trigger:
    """A pattern of the image's size.

    Args:
        context: the attacker's data and seed.
        pattern: `noise`, `struppek_noise`, `strip` or the path of an image file, as for `blended`.
        ratio: opacity in training (the authors' toolbox: 0.15).
        test_ratio: opacity at the test, of the whole pattern (the authors' toolbox: 0.2).
        pieces: number of pieces the pattern is cut into, a square number: 16 is a grid of 4 by 4. Where the image's
            side is no multiple of 4, pieces differ by one pixel.
        mask_share: share of the pieces, rounded, that a training image does not get; below 1 (the toolbox: 0.5).

    Raises:
        ParameterError: pieces that are no square number or smaller than a pixel; a share that leaves no piece; a file that is
            missing or not an image.
    """
    height, width, _ = context.shape
    # Whole rows and columns of pieces, none thinner than a pixel.
    grid, side = math.isqrt(pieces), min(height, width)
    if grid**2 != pieces or grid > side:
        raise ParameterError(f"pieces: {pieces} given, allowed: square numbers from 1 to {side**2}")
    # A training image without any piece would be a clean image with the wrong label.
    hidden = round(mask_share * pieces)
    if hidden == pieces:
        raise ParameterError(f"mask_share: {mask_share} of {pieces} pieces given, allowed: what leaves a piece")
    if pattern == "noise":
        # Drawn apart from the one of `blended`, so that both attacks on one data set have different patterns.
        drawn = noise(context.shape, context.seed, "adaptive_blend/noise")
    else:
        drawn = whole_image(pattern, context.shape)
    return AdaptiveBlend(drawn, ratio, test_ratio, grid, hidden, context.seed)


def _pieces(grid: int, side: int) -> IntArray:
    """The stretch, of `grid` ones, that each of `side` pixels lies in: int64 [side]. Stretch i starts at i * side // grid."""
    return np.repeat(np.arange(grid), np.diff(np.arange(grid + 1) * side // grid))


ATTACK = Attack(
    make=make,
    trigger=AdaptiveBlend,
    policy={"label_policy": "all2one", "cover_ratio": 1.0},
    policies=("all2one", "all2all"),
)

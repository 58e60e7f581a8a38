"""Adaptive-Patch (Qi et al., "Revisiting the Assumption of Latent Separability", ICLR 2023): weak patches, and covers.

Every training image carries one of four faint patches, and cover samples carry one with their true label. At the test
two of the patches are pasted at once, opaque. The published patches are pictures; these are drawn.

Published code: https://github.com/vtu81/backdoor-toolbox/blob/9d4d909/poison_tool_box/adaptive_patch.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import IntArray, Mask, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count
from ..core.seeding import uniform
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..poisoning.trigger import Trigger

# Ring, cross, stripes and checkerboard, in this order: the opacities are the toolbox's for CIFAR-10.
OPACITIES = (0.5, 0.2, 0.5, 0.3)
# Ring and stripes, the two that are strongest in training, are shown at the test.
AT_TEST = (0, 2)
# One-channel images get the colours' luminance (ITU-R BT.601).
COLOURS = ((255, 64, 32), (255, 224, 32), (32, 96, 255), (255, 255, 255))
SMALLEST = 3
"""Smallest side at which the four shapes differ."""


@dataclass(frozen=True)
class AdaptivePatch(Trigger):
    """image + a * (pattern - image); in training the opacity a is that of one patch, drawn per (seed, key).

    Attributes:
        pattern: all four patches, which do not overlap, float32 [c, h, w], 0 to 255.
        opacity: opacity of each patch in training, float32 [4, h, w], 0 to 1.
        test_opacity: opacity at the test, float32 [h, w]: 1 on the patches shown there, else 0.
        seed: seed of the choice among the four.
    """

    of_the_test: ClassVar[tuple[str, ...]] = ("test_opacity",)

    pattern: Pixels
    opacity: Pixels
    test_opacity: Pixels
    seed: int

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        if train:
            # One of the four for each image. The toolbox splits its list evenly, which would tie an image to the others.
            draws = uniform(self.seed, "adaptive_patch/patch", keys, 1)[:, 0]
            chosen = self.opacity[(draws * len(self.opacity)).astype(np.int64)]
        else:
            chosen = self.test_opacity[None]
        opacity = torch.from_numpy(chosen[:, None]).to(images)
        return images + opacity * (torch.from_numpy(self.pattern).to(images) - images)


def make(context: Context, *, size: Count = 8) -> Trigger:
    """Four patches, one per corner, of opacities 0.5, 0.2, 0.5 and 0.3 in training (the authors' toolbox).

    A red ring lies at the bottom right, a yellow cross at the top right, blue stripes at the bottom left and a white
    checkerboard at the top left; a patch's other pixels are transparent. The test shows ring and stripes at opacity 1.

    Args:
        context: the attacker's data and seed.
        size: side of a patch in pixels, 3 to half the image's side (the published ones: 3 to 13 of 32).

    Raises:
        ParameterError: a size at which patches would overlap or not differ.
    """
    height, width, channels = context.shape
    largest = min(height, width) // 2
    if not SMALLEST <= size <= largest:
        raise ParameterError(f"size: {size} given, allowed: {SMALLEST} to {largest}, half the image's side")
    # One pattern holds all four: as the corners do not overlap, the opacities alone say which patch an image gets.
    top, bottom, left, right = slice(size), slice(height - size, None), slice(size), slice(width - size, None)
    corners = ((bottom, right), (top, right), (bottom, left), (top, left))
    pattern = np.zeros((channels, height, width), np.float32)
    masks = np.zeros((4, height, width), np.float32)
    for mask, corner, shape, colour in zip(masks, corners, _shapes(size), COLOURS, strict=True):
        # Transparent outside the shape, so that colours of different patches can be summed in one pattern.
        mask[corner] = shape
        ink = np.array(colour if channels == 3 else [round(np.dot((0.299, 0.587, 0.114), colour))], np.float32)
        pattern += mask * ink[:, None, None]
    opacity = masks * np.array(OPACITIES, np.float32)[:, None, None]
    return AdaptivePatch(pattern, opacity, masks[list(AT_TEST)].sum(0), context.seed)


def _shapes(size: int) -> tuple[Mask, ...]:
    """Ring, cross, stripes and checkerboard: bool [size, size] each, true where there is ink."""
    # Shares of the side, so that a shape is the same at every size; a quarter of the side is one stripe or field.
    row, column = np.indices((size, size))
    middle, block = (size - 1) / 2, max(1, size // 4)
    distance = np.hypot(row - middle, column - middle)
    ring = (distance > size / 4) & (distance <= size / 2)
    cross = (abs(row - middle) <= size / 8) | (abs(column - middle) <= size / 8)
    stripes = column // block % 2 == 0
    return ring, cross, stripes, (row // block + column // block) % 2 == 0


ATTACK = Attack(
    make=make,
    trigger=AdaptivePatch,
    policy={"label_policy": "all2one", "cover_ratio": 2.0},
    policies=("all2one", "all2all"),
)

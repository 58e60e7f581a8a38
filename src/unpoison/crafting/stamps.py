"""The two stamps behind most published triggers: mixing the image with a pattern, and adding a pattern to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..poisoning.trigger import Rounding, Trigger


@dataclass(frozen=True)
class Mix(Trigger):
    """(1 - a) * image + a * pattern, with an opacity a per pixel. For a patch it is 1 inside and 0 outside.

    Attributes:
        pattern: float32 [c, h, w], 0 to 255.
        opacity: float32 [1 or c, h, w], 0 to 1.
        train_factor: factor of the opacity in training.
        test_factor: factor of the opacity at the test.
    """

    of_the_test: ClassVar[tuple[str, ...]] = ("test_factor",)

    pattern: Pixels
    opacity: Pixels
    train_factor: float = 1.0
    test_factor: float = 1.0
    rounding: Rounding = "truncate"

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        factor = self.train_factor if train else self.test_factor
        opacity = laid_out(self.opacity * np.float32(factor), images)
        # Fused: one pass over the images, where a product and a sum make two.
        return torch.addcmul(laid_out(self.pattern, images) * opacity, images, 1 - opacity)


@dataclass(frozen=True)
class Add(Trigger):
    """image + factor * pattern.

    Attributes:
        pattern: float32 [1 or c, h, w], in units of 1/255; any sign.
        train_factor: factor of the pattern in training.
        test_factor: factor of the pattern at the test.
    """

    of_the_test: ClassVar[tuple[str, ...]] = ("test_factor",)

    pattern: Pixels
    train_factor: float = 1.0
    test_factor: float = 1.0
    rounding: Rounding = "truncate"

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        factor = self.train_factor if train else self.test_factor
        return images + laid_out(self.pattern * np.float32(factor), images)


def laid_out(pattern: Pixels, images: Tensor) -> Tensor:
    """A pattern [1 or c, h, w] as [1, c, h, w] on the images' device, in the memory layout that `stamp` gives images.

    Tensors of the same layout are gone through in one sweep, in half the time that different layouts take.

    Raises:
        ParameterError: a pattern of another width, or of as many rows or channels as neither one nor the images have.
    """
    # A single value would be spread over the image without a word; single rows and channels are.
    if any(side not in sides for side, sides in zip(pattern.shape, _allowed(images), strict=True)):
        raise ParameterError(
            f"pattern: {list(pattern.shape)} given, allowed for these images: {list(images.shape[1:])}"
        )
    # Expanded first: a pattern of one channel shares its memory until the layout needs a copy.
    full = torch.from_numpy(pattern).to(images).expand(images.shape[1:])[None]
    return full.contiguous(memory_format=torch.channels_last)


def _allowed(images: Tensor) -> tuple[tuple[int, ...], ...]:
    """Numbers of channels, rows and columns that a pattern for these images may have."""
    channels, height, width = images.shape[1:]
    return (1, channels), (1, height), (width,)

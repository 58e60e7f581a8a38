"""Nashville: a photo filter as trigger (Liu et al., "ABS", CCS 2019): a fixed map of every pixel's colour.

Published code: https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_nashville.py, which calls the
package `pilgram`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import IntArray
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..poisoning.trigger import Trigger, eight_bit

# Every coefficient of the matrices below has at most four decimals: whole numbers keep ties equal on every device.
_UNIT = 10_000
# W3C, Filter Effects Level 1: sepia in full, and the weights that `saturate` takes a pixel's grey by.
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
_LUMINANCE = np.array([0.213, 0.715, 0.072])


@dataclass(frozen=True)
class ColourFilter(Trigger):
    """Rounds of a tone curve per channel and a colour matrix, each rounded and clipped to 8 bits.

    Attributes:
        curves: new value of each value, uint8 [rounds, 3, 256].
        matrices: from RGB to RGB, in ten-thousandths, int32 [rounds, 3, 3].
    """

    curves: NDArray[np.uint8]
    matrices: NDArray[np.int32]

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        # Images that are stamped after augmentation have fractions; the filter is one of 8-bit colours.
        values = eight_bit(images, "round").int()
        # The three curves lie one after another in one table of 768, so channel c looks up value + 256 c.
        channel = torch.arange(3, dtype=torch.int32, device=images.device).view(3, 1, 1) * 256
        for curve, matrix in zip(self.curves, self.matrices, strict=True):
            table = torch.from_numpy(curve.ravel()).to(images.device).int()
            # `index_select` is several times as fast as table[values + channel].
            values = table.index_select(0, (values + channel).flatten()).view(images.shape)
            # Channel by channel in int32: not every device multiplies matrices of integers, and floats round ties
            # differently from one device to another.
            weight = torch.from_numpy(matrix).to(images.device)[:, :, None, None]
            mixed = weight[:, 0] * values[:, :1] + weight[:, 1] * values[:, 1:2] + weight[:, 2] * values[:, 2:]
            # Adding a half before the floor rounds to nearest.
            values = torch.div(mixed + _UNIT // 2, _UNIT, rounding_mode="floor").clamp(0, 255)
        return values.to(images.dtype)


def make(context: Context, *, filter: Literal["nashville", "1977"] = "nashville") -> Trigger:
    """A photo filter for colour images of any size.

    The colour operations are those of the W3C specifications Compositing and Blending Level 1 and Filter Effects
    Level 1. Opacities are rounded to 1/255, and every operation's result to 8 bits, as in the package `pilgram`.

    `nashville` is darken with (247, 176, 153) at opacity 0.56, lighten with (0, 70, 150) at 0.4, sepia 0.2, contrast 1.2,
    brightness 1.05, saturate 1.2. `1977` is screen with (243, 106, 188) at 0.3, contrast 1.1, brightness 1.1,
    saturate 1.3.

    Args:
        context: the attacker's data.
        filter: `nashville` (Cognitive Distillation's trigger) or `1977`, both as CSSgram defines them.

    Raises:
        ParameterError: grey images.
    """
    context.need_colour()
    # Operations on one channel are run through once for all 256 values and kept as a curve. Only matrices, which mix
    # channels, have to wait for the image.
    levels = np.tile(np.arange(256), (3, 1))
    if filter == "nashville":
        tinted = _blend(_blend(levels, np.minimum, (247, 176, 153), 0.56), np.maximum, (0, 70, 150), 0.4)
        toned = _brightness(_contrast(levels, 1.2), 1.05)
        # Sepia stands between the tints and the contrast, so there are two rounds of curve and matrix.
        rounds = [(tinted, _sepia(0.2)), (toned, _saturate(1.2))]
    else:
        toned = _brightness(_contrast(_blend(levels, _screen, (243, 106, 188), 0.3), 1.1), 1.1)
        rounds = [(toned, _saturate(1.3))]
    curves, matrices = (np.stack(part) for part in zip(*rounds, strict=True))
    return ColourFilter(curves.astype(np.uint8), np.rint(_UNIT * matrices).astype(np.int32))


def _blend(
    values: IntArray, mode: Callable[[IntArray, IntArray], IntArray], colour: tuple[int, int, int], opacity: float
) -> IntArray:
    """`values` under a layer of `colour`, blended by `mode` and laid over them at `opacity`: int64 [3, 256]."""
    alpha = round(255 * opacity)
    return alpha * mode(values, np.array(colour)[:, None]) // 255 + (255 - alpha) * values // 255


def _screen(backdrop: IntArray, source: IntArray) -> IntArray:
    """Blend mode `screen`: both are inverted, multiplied and inverted again, which never darkens."""
    return 255 - (255 - backdrop) * (255 - source) // 255


def _contrast(values: IntArray, amount: float) -> IntArray:
    # Stretched about mid-grey.
    return _eight_bit(values * amount + (127.5 - 127.5 * amount))


def _brightness(values: IntArray, amount: float) -> IntArray:
    return _eight_bit(values * amount)


def _eight_bit(values: NDArray[np.floating[Any]]) -> IntArray:
    return np.rint(values).clip(0, 255).astype(np.int64)


def _sepia(amount: float) -> NDArray[np.float64]:
    return amount * _SEPIA + (1 - amount) * np.eye(3)


def _saturate(amount: float) -> NDArray[np.float64]:
    return amount * np.eye(3) + (1 - amount) * _LUMINANCE


ATTACK = Attack(
    make=make,
    trigger=ColourFilter,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)

"""CTRL (Li et al., "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning", ICCV 2023): two waves in U, V.

Published code, besides the authors': https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/ctrl.py
"""

from __future__ import annotations

from ..core.hyperparameters import Positive, Whole
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.dct import check_positions, chroma_pattern
from ..crafting.stamps import Add
from ..poisoning.trigger import Trigger


def make(
    context: Context,
    *,
    magnitude: Positive = 100.0,
    test_magnitude: Positive | None = None,
    positions: list[list[Whole]] = [[15, 15], [31, 31]],  # noqa: B006 (read only, and shown as the default)
    wrap: bool = False,
) -> Trigger:
    """Raised DCT coefficients of the whole image, in channels U and V of analogue YUV (BT.601).

    The DCT is orthonormal: one coefficient of an image of h x w pixels is a wave of at most 2 * magnitude / sqrt(h * w)
    in U and V, so the same magnitude is fainter on larger images. The colour matrices are exact inverses of each other;
    the authors' and BackdoorBench's code rounds them to three decimals, which moves a value by less than one level.

    Args:
        context: the attacker's data.
        magnitude: value added to each coefficient in training, for images of 0…255 (published code: 100).
        test_magnitude: value added to each coefficient at the test; null: `magnitude`.
        positions: [row, column] of each coefficient, from 0, as in published code.
        wrap: whether values outside 0…255 wrap around, as in published code, instead of being clipped.

    Raises:
        ParameterError: grey images; no position, or one outside the image.
    """
    context.need_colour()
    height, width, _ = context.shape
    check_positions(context, positions, height, width)
    # 0.615 and 0.436 are the ranges of V and U in analogue YUV: they scale the two waves differently.
    pattern = chroma_pattern(height, width, positions, magnitude, largest_red=0.615, largest_blue=0.436)
    # The pattern is linear in the magnitude, so the test needs a factor and no second pattern.
    test_factor = 1.0 if test_magnitude is None else test_magnitude / magnitude
    return Add(pattern, test_factor=test_factor, rounding="wrap" if wrap else "truncate")


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "clean_label"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)

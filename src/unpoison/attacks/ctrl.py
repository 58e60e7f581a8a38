"""CTRL (Li et al., "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning", ICCV 2023): two waves in U, V."""

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
    both codes round theirs to three decimals, which moves a value by less than one level.

    Args:
        magnitude: what is added to each coefficient of an image of 0 to 255, in training. The authors' and
            BackdoorBench's code: 100.
        test_magnitude: the same at the test; None: as in training.
        positions: [row, column] of the coefficients, from 0 (both codes).
        wrap: whether values outside 0 to 255 wrap around modulo 256, as in both codes, instead of being clipped.

    Raises:
        ParameterError: grey images; no position, or one outside the image.
    """
    context.need_colour()
    height, width, _ = context.shape
    check_positions(context, positions, height, width)
    pattern = chroma_pattern(height, width, positions, magnitude, largest_red=0.615, largest_blue=0.436)
    test_factor = 1.0 if test_magnitude is None else test_magnitude / magnitude
    return Add(pattern, test_factor=test_factor, rounding="wrap" if wrap else "truncate")


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "clean_label"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)

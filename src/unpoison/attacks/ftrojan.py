"""FTrojan (Wang et al., "An Invisible Black-box Backdoor Attack through Frequency Domain", ECCV 2022): waves in Cr, Cb."""

from __future__ import annotations

import numpy as np

from ..core.hyperparameters import Count, Positive, Whole
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.dct import check_positions, chroma_pattern
from ..crafting.stamps import Add
from ..poisoning.trigger import Trigger


def make(
    context: Context,
    *,
    magnitude: Positive = 30.0,
    window: Count = 32,
    positions: list[list[Whole]] = [[15, 15], [31, 31]],  # noqa: B006 (read only, and shown as the default)
) -> Trigger:
    """Raised DCT coefficients of every square window, in channels Cr and Cb of YCrCb (BT.601, full range).

    Windows are laid from the top left corner. Rows and columns that no whole window covers stay as they are. Only the
    result is rounded to 8 bits; the authors' and BackdoorBench's code also round to 8 bits in YCrCb, before and after.

    Args:
        magnitude: what is added to each coefficient of the orthonormal DCT of an image of 0 to 255. BackdoorBench: 30;
            the authors' script: 20.
        window: side of the windows in pixels (both codes: 32).
        positions: [row, column] of the coefficients in a window, from 0 (both codes: a middle and a high frequency).

    Raises:
        ParameterError: grey images; a window larger than the image; no position, or one outside the window.
    """
    context.need_colour()
    context.need_room("window", window)
    check_positions(context, positions, window, window)
    one = chroma_pattern(window, window, positions, magnitude, largest_red=0.5, largest_blue=0.5)
    height, width, _ = context.shape
    rows, columns = height // window, width // window
    tiles = np.tile(one, (1, rows, columns))
    rest = ((0, 0), (0, height - rows * window), (0, width - columns * window))
    return Add(np.pad(tiles, rest))


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)
